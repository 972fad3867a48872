"""Ground floor: errors, names, options, declared needs, the problem and the run. No training loops."""
