"""Label repair: forget or relabel suspected wrong labels, and measure what it did."""
