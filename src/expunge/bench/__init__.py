"""Studies: one YAML file, a grid of cells, results that survive interruption."""
