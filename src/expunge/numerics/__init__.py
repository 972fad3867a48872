"""Numerical building blocks of methods and metrics: per-sample gradients, curvature, attacks, statistics."""
