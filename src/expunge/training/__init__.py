"""Training: the training loop, recipes, inference and the cache of trained models."""
