"""Catalogue of the scenarios, which select the forget set, without importing torch.

Other packages register scenarios through the entry-point group `expunge.scenarios`.
"""

from __future__ import annotations

from expunge.core.registry import Card, Paper, Registry

SCENARIOS = Registry(
    "scenario",
    [
        Card(
            name="random",
            summary="a random fraction or number of samples; `random:0.1`",
            target="expunge.scenarios.selections:RandomSamples",
        ),
        Card(
            name="class",
            summary="all samples of one class, or `count` of them; `class:cat`, `class:target=cat,count=25`",
            target="expunge.scenarios.selections:OneClass",
        ),
        Card(
            name="per-class",
            summary="a fraction of each class; `per-class:fractions=cat=0.4+dog=0.4`",
            target="expunge.scenarios.selections:PerClass",
        ),
        Card(
            name="instances",
            summary="k instances of any class, nested in k for one seed; `instances:16`",
            target="expunge.scenarios.selections:Instances",
            paper=Paper(cite="Cha et al.: Learning to Unlearn, AAAI 2024", url="arXiv:2301.11578"),
        ),
        Card(
            name="noisy",
            summary="samples whose labels were replaced by wrong ones; true labels are kept; `noisy:0.2`",
            target="expunge.scenarios.noise:NoisyLabels",
        ),
        Card(
            name="confusion",
            summary="samples of two classes that carry each other's label; `confusion:50`",
            target="expunge.scenarios.confusion:Confusion",
            paper=Paper(cite="Goel et al.: Towards Adversarial Evaluations", url="arXiv:2201.06640"),
        ),
        Card(
            name="memorised",
            summary="samples of low, medium or high memorisation; `memorised:level=high,amount=100,scores=scores.csv`",
            target="expunge.scenarios.ranked:Memorised",
            paper=Paper(cite="Zhao et al.: What makes unlearning hard, NeurIPS 2024", url="arXiv:2406.01257"),
        ),
        Card(
            name="worst-case",
            summary="the samples that are hardest to erase; `worst-case:worst.csv,amount=100`",
            target="expunge.scenarios.ranked:WorstCase",
            paper=Paper(cite="Fan et al.: Challenging Forgets, ECCV 2024", url="arXiv:2403.07362"),
        ),
        Card(
            name="subpopulation",
            summary="samples that resemble one another: a seed sample and its nearest neighbours; `subpopulation:50`",
            target="expunge.scenarios.subpopulation:Subpopulation",
        ),
        Card(
            name="laf-task",
            summary="the LAF authors' data, class and noisy label removal, sample for sample; `laf-task:random`",
            target="expunge.scenarios.laf:LAFTask",
            paper=Paper(cite="Shen et al.: Label-Agnostic Forgetting, ICLR 2024", url="arXiv:2404.00506"),
        ),
        Card(
            name="ids",
            summary="samples by their ids, or a file of ids; `ids:0005,0017`, `ids:requests.csv`",
            target="expunge.scenarios.selections:ExplicitIds",
        ),
        Card(
            name="index",
            summary="samples by their positions in the data, counted from 0; `index:3,17`",
            target="expunge.scenarios.selections:Positions",
        ),
        Card(
            name="where",
            summary="a predicate on a metadata column; `where:user==4711`",
            target="expunge.scenarios.selections:Where",
        ),
    ],
    decorator="@expunge.scenarios.base.scenario_class(name, summary=...)",
)
