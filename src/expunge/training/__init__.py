"""Training: the one loop, recipes, inference, cached references."""
