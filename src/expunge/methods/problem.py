"""The unlearning problem that a method receives: the model, and only the data that the method declared.

`restrict` makes it. Its splits are sealed (`Split.sealed`): each has a store of its own that holds the declared rows
and nothing else, so that no attribute, bound method or closure of anything reachable from the problem leads to another
sample or label. Streaming data cannot be copied and are read through an opaque handle, the strongest protection that
Python offers (see `core.opaque`). The caller's functions in the run context are behind such handles too.
Memory     one copy of the declared rows, in memory and on each device that holds them; a split that is a whole data
           set shares its samples, and streaming data are not copied
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from expunge.core.errors import AccessError, UsageError
from expunge.core.needs import Needs
from expunge.core.seeds import derive
from expunge.data.split import Split
from expunge.models.contract import parameter_names
from expunge.models.initial import reset_parameters

if TYPE_CHECKING:
    from expunge.numerics.gradient_moments import Importance
    from expunge.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Model and declared data; reading a part that was not declared raises `AccessError`.

    Attributes:
        model: the trained model; methods copy it (`student`) and never change it.
        num_classes: number of logits.
        input_shape: shape of one sample.
        needs: what the method declared.
        forgotten: number of forget samples, 0 if unknown; every method may read it.
    """

    model: nn.Module
    num_classes: int
    input_shape: tuple[int, ...]
    needs: Needs
    forgotten: int = 0
    _splits: Mapping[str, Split] = field(default_factory=dict)
    _recipe: Recipe | None = None
    _initial: Mapping[str, torch.Tensor] | None = None
    _importance: Importance | None = None

    @property
    def forget(self) -> Split:
        """The forget set."""
        return self._split("forget")

    @property
    def retain(self) -> Split:
        """The retain set."""
        return self._split("retain")

    @property
    def labelled(self) -> Split:
        """The retained samples whose labels are part of the label budget (`Needs.labelled`)."""
        return self._split("labelled")

    @property
    def validation(self) -> Split:
        """Held-out samples."""
        return self._split("validation")

    @property
    def recipe(self) -> Recipe:
        """How the model was trained."""
        if self._recipe is None:
            raise AccessError("the training recipe is not part of this problem; declare `recipe=True` in the needs.")
        return self._recipe

    @property
    def initial(self) -> Mapping[str, torch.Tensor]:
        """State dict of the initial weights that training started from."""
        if self._initial is None:
            raise AccessError("the initial weights are not part of this problem; declare `initial=True` in the needs.")
        return self._initial

    @property
    def importance(self) -> Importance:
        """Importance of the training data that was stored with the model."""
        if self._importance is None:
            raise AccessError("no stored importance is part of this problem; declare `importance=True` in the needs.")
        return self._importance

    @property
    def has_initial(self) -> bool:
        """Whether the initial weights are known and declared."""
        return self._initial is not None

    @property
    def has_recipe(self) -> bool:
        """Whether the recipe is known and declared."""
        return self._recipe is not None

    @property
    def has_validation(self) -> bool:
        """Whether held-out samples are given and declared."""
        return "validation" in self._splits

    def student(self) -> nn.Module:
        """A trainable copy of the model; all parameters require gradients."""
        student = copy.deepcopy(self.model)
        for parameter in student.parameters():
            parameter.requires_grad_(True)
        return student

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            raise AccessError(
                f"the {name} data are not part of this problem: the method declares {name}={getattr(self.needs, name)}."
            )
        return self._splits[name]


def restrict(
    model: nn.Module,
    splits: Mapping[str, Split],
    needs: Needs,
    num_classes: int,
    recipe: Recipe | None,
    initial: Mapping[str, torch.Tensor] | None,
    seed: int,
    importance: Importance | None = None,
) -> Problem:
    """Build a problem that contains exactly what is declared.

    Args:
        model: the trained model; where `needs.weights` is false, a copy with the initial weights takes its place.
        splits: "forget", "retain" and "validation", as far as they were given.
        needs: what the method declares.
        num_classes: number of logits.
        recipe: how the model was trained, if known; passed on if declared.
        initial: state dict of the initial weights, if known; passed on if declared.
        seed: for the draw of a label budget, and for initial weights if they are unknown.
        importance: importance of the training data, stored with the model; passed on if declared.

    Raises:
        UsageError: if the label budget is larger than the retain set.
    """
    sealed = {}
    for name in ("forget", "retain", "validation"):
        access = getattr(needs, name)
        if access != "none" and name in splits:
            sealed[name] = splits[name].sealed(labels=access == "labels")
    if needs.labelled:
        sealed["labelled"] = label_budget(splits["retain"], needs.labelled, seed)
    if not needs.weights:
        model = copy.deepcopy(model)
        if initial is not None:
            model.load_state_dict(initial)
        else:
            reset_parameters(model, seed=seed)
    return Problem(
        model=model,
        num_classes=num_classes,
        input_shape=next(iter(splits.values())).input_shape,
        needs=needs,
        forgotten=len(splits["forget"]) if "forget" in splits else 0,
        _splits=sealed,
        _recipe=recipe if needs.recipe else None,
        _importance=importance if needs.importance else None,
        _initial=parameter_names(model, initial) if initial and (needs.initial or not needs.weights) else None,
    )


def label_budget(retain: Split, amount: float, seed: int) -> Split:
    """A random subset of the retained samples with their labels, sealed.

    Args:
        retain: the retained samples, with labels.
        amount: share of them in (0, 1), or their number, >= 1.
        seed: seed of the draw.

    Raises:
        UsageError: if `amount` exceeds the number of retained samples.
    """
    count = max(1, int(amount * len(retain))) if amount < 1 else int(amount)
    if count > len(retain):
        raise UsageError(f"the label budget is {count} retained samples, but there are only {len(retain)}.")
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(derive(seed, "label budget")))
    return retain.take(retain.index[order[:count]].sort().values, "labelled").sealed()
