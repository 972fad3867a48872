"""Is the audit right as often as it says? It is tried on models of known truth, on networks outside the catalogue.

Truth        retrained models never saw the samples to forget; originals saw all of them and did nothing; negative
             controls hide what they know (see `controls`); destroyed models lost what should have stayed
Trials       every retrained model is left out once and judged by 3, 5 and 8 others; all candidates are judged by the
             first 3, 5 and 8, and without references
False alarm  a retrained model is called damaged, not forgotten, over-forgotten or suppressed

Original     whether originals differ from retrained models at all is itself tested, exactly, over all models of known
             truth (`trials.differs`): an audit that finds nothing where nothing differs is right

`python -m benchmarks.calibration run OUT` fills OUT/trials.csv task by task, `truth OUT` writes OUT/differs.csv, and
`table OUT` writes OUT/README.md.
"""
