"""Preparation of the data sets of single papers."""
