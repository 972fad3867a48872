"""Speed as ratios measured in one process: `make bench`. Never a timed test."""
