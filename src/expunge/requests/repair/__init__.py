"""Label repair: suspects from a list, forgotten or relabelled, with what it did to whom."""
