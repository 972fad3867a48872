"""Checks of the inputs of an audit: disjoint sets, valid outputs, and distinct retrained models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from expunge.api.prepare import check_disjoint
from expunge.core.errors import DataError, UsageError
from expunge.core.seeds import torch_generator
from expunge.data.split import ResidentStore, Split
from expunge.evidence.family import NEAR
from expunge.metrics.base import Evaluation

SHARE = 0.1  # of the values of an input that are replaced by those of another forget sample
MOST_NEAR = 1000  # forget samples whose neighbourhood is tested


def check_sets(splits: Mapping[str, Split]) -> list[str]:
    """Check that no two of forget, retain and test share samples.

    Returns:
        Notes on overlaps that are allowed.

    Raises:
        DataError: For sets that share samples.
    """
    notes = check_disjoint(splits)
    if "retain" in splits and "test" in splits:
        pair = {"forget": splits["test"], "retain": splits["retain"]}
        try:
            check_disjoint(pair)
        except DataError as error:
            text = str(error).partition(" samples")[0]
            raise DataError(
                f"{text} samples are in both the retain and the test set; an audit needs test samples that no model "
                "was trained on."
            ) from None
    return notes


def check_outputs(evaluation: Evaluation, models: Sequence[str]) -> None:
    """Raise `UsageError` for outputs that are not finite, or that are probabilities instead of logits."""
    for name in models:
        bad = {
            split: int((~torch.isfinite(evaluation.logits(name, split)).all(1)).sum())
            for split in evaluation.present(("forget", "retain", "test"))
        }
        where = [f"{count} of {len(evaluation.splits[split])} {split} samples" for split, count in bad.items() if count]
        if where:
            raise UsageError(
                f"the outputs of the {name} model are not finite (NaN or infinite) on {' and '.join(where)}; such a "
                "model cannot be audited: check its weights and its inputs."
            )
        z = evaluation.logits(name, "test").double()
        if z.shape[1] > 1 and bool(((z.sum(1) - 1).abs() < 1e-3).all()) and float(z.min()) >= 0 and float(z.max()) <= 1:
            raise UsageError(
                f"the outputs of the {name} model are probabilities (each row sums to 1), and an audit needs logits; "
                "return what enters the softmax, or its logarithm."
            )


def check_references(evaluation: Evaluation, retrained: Sequence[str]) -> None:
    """Raise `UsageError` if a retrained model has the same outputs as another, the original or the unlearned model."""
    outputs = {name: evaluation.logits(name, "test") for name in ("original", "unlearned", *retrained)}
    forget = {name: evaluation.logits(name, "forget") for name in outputs}

    def same(a: str, b: str) -> bool:
        return torch.equal(outputs[a], outputs[b]) and torch.equal(forget[a], forget[b])

    for reference, other in combinations(retrained, 2):
        if same(reference, other):
            raise UsageError(
                f"{reference} and {other} give the same outputs: they are the same model; train each with its own seed."
            )
    for reference in retrained:
        for name, advice in (
            ("original", "a reference must be trained without the samples to forget"),
            ("unlearned", "a model cannot be its own reference: train references with other seeds"),
        ):
            if same(reference, name):
                raise UsageError(f"{reference} gives the same outputs as the {name} model; {advice}.")


def near_split(forget: Split, seed: int) -> Split | None:
    """Inputs near the forget samples: a random tenth of the values of each is taken from another forget sample.

    So an input stays in its domain (pixels, columns, token ids) and equals no training sample.

    Returns:
        The split; None if inputs are not a single tensor, or if there is only one sample.
    """
    some = forget.take(forget.index[:MOST_NEAR]) if len(forget) > MOST_NEAR else forget
    x: Any = some.inputs()
    if not isinstance(x, Tensor) or len(some) < 2:
        return None
    generator = torch_generator(seed, "audit", "near")
    donors = (torch.arange(len(x)) + torch.randint(1, len(x), (len(x),), generator=generator)) % len(x)
    mixed = torch.where(torch.rand(x.shape, generator=generator) < SHARE, x[donors], x)
    return Split.whole(ResidentStore(mixed, some.y, classes=some.store.classes), NEAR)
