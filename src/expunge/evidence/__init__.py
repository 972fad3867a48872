"""Evidence of forgetting: membership attacks, distances to retrained models, and the verdict of an audit."""
