"""The command line: thin. It reads options, calls the rooms below, and prints; torch loads only when work begins."""
