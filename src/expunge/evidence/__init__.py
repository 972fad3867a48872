"""Evidence: how well a model forgot, as far as one can know it. Attacks, distances to retraining, and a verdict."""
