"""Memorisation scores: leave-out estimates, training dynamics, worst-case forget sets."""
