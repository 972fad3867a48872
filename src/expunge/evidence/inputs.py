"""What an audit is given, checked before anything is concluded from it: sets, outputs, and retrained models."""

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

SHARE = 0.1  # of the values of an input that another forgotten sample's replace
MOST_NEAR = 1000  # samples to forget whose surroundings are looked at


def check_sets(splits: Mapping[str, Split]) -> list[str]:
    """`DataError` if any two of forget, retain and test share samples; returns notes on what was let pass."""
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
    """`UsageError` for outputs that are not finite, or that are probabilities where logits are needed."""
    for name in models:
        bad = {
            split: int((~torch.isfinite(evaluation.logits(name, split)).all(1)).sum())
            for split in evaluation.present(("forget", "retain", "test"))
        }
        where = [f"{count} of {len(evaluation.splits[split])} {split} samples" for split, count in bad.items() if count]
        if where:
            raise UsageError(
                f"the outputs of the {name} model are not finite (NaN or infinite) on {' and '.join(where)}; nothing "
                "can be concluded from such a model: check its weights and its inputs."
            )
        z = evaluation.logits(name, "test").double()
        if z.shape[1] > 1 and bool(((z.sum(1) - 1).abs() < 1e-3).all()) and float(z.min()) >= 0 and float(z.max()) <= 1:
            raise UsageError(
                f"the outputs of the {name} model are probabilities (each row sums to 1), and an audit needs logits; "
                "return what enters the softmax, or its logarithm."
            )


def check_references(evaluation: Evaluation, retrained: Sequence[str]) -> None:
    """`UsageError` if a retrained model answers exactly as another, as the original or as the unlearned model."""
    outputs = {name: evaluation.logits(name, "test") for name in ("original", "unlearned", *retrained)}
    forget = {name: evaluation.logits(name, "forget") for name in outputs}

    def same(a: str, b: str) -> bool:
        return torch.equal(outputs[a], outputs[b]) and torch.equal(forget[a], forget[b])

    for one, other in combinations(retrained, 2):
        if same(one, other):
            raise UsageError(
                f"{one} and {other} give the same outputs: they are one model; train each from another seed."
            )
    for one in retrained:
        for name, advice in (
            ("original", "a reference must be trained without the samples to forget"),
            ("unlearned", "a model cannot be its own reference: train references from other seeds"),
        ):
            if same(one, name):
                raise UsageError(f"{one} gives the same outputs as the {name} model; {advice}.")


def near_split(forget: Split, seed: int) -> Split | None:
    """Inputs near the samples to forget: a tenth of each replaced by the same places of another one, at random.

    So an input stays in its domain, whatever it is made of (pixels, columns, token numbers), and is exactly none that
    the model was trained on. None where inputs are no single tensor, or where there is but one sample.
    """
    some = forget.take(forget.index[:MOST_NEAR]) if len(forget) > MOST_NEAR else forget
    x: Any = some.inputs()
    if not isinstance(x, Tensor) or len(some) < 2:
        return None
    generator = torch_generator(seed, "audit", "near")
    donors = (torch.arange(len(x)) + torch.randint(1, len(x), (len(x),), generator=generator)) % len(x)
    mixed = torch.where(torch.rand(x.shape, generator=generator) < SHARE, x[donors], x)
    return Split.whole(ResidentStore(mixed, some.y, classes=some.store.classes), NEAR)
