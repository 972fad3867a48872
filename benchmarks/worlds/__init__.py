"""The tournament: every method on networks and data that are nowhere in the package, against retrained models.

`python -m benchmarks.worlds run` fills a cache of cells (resumable), `table` writes results/worlds/ from them, `ranks`
condenses them into the file that the planner reads.
"""
