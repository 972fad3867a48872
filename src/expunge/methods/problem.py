"""The forgetting problem as one method sees it: the model, and only the data that the method declared.

`restrict` makes it. Its splits are sealed (`Split.sealed`): each has a store of its own that holds the declared rows
and nothing else, so that no attribute, bound method or closure of anything reachable from the problem leads to another
sample or label. Data that stream cannot be copied; they are read through a handle, which is as far as Python goes (see
`core.opaque`). The same holds for the run: the caller's functions are behind handles there.
Memory     the declared rows once more, in memory and on each device that has them; a split that is a whole data set
           of its own shares its samples, and a data set that streams copies nothing
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
    """What there is to forget with. Reading a part that is absent raises `AccessError` and says how to get it.

    model: the trained model; methods copy it (`student`) and never change it. initial: the state dict training
    started from (needed by EU-k, NTK, Unrolling). recipe: how the model was trained. forgotten: how many samples are
    to be forgotten, 0 where nobody said; every method may know that number.
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
        return self._split("forget")

    @property
    def retain(self) -> Split:
        return self._split("retain")

    @property
    def labelled(self) -> Split:
        """The few retained samples whose labels are handed over (`Needs.labelled`)."""
        return self._split("labelled")

    @property
    def validation(self) -> Split:
        return self._split("validation")

    @property
    def recipe(self) -> Recipe:
        if self._recipe is None:
            raise AccessError("the training recipe is not part of this problem; declare `recipe=True` in the needs.")
        return self._recipe

    @property
    def initial(self) -> Mapping[str, torch.Tensor]:
        if self._initial is None:
            raise AccessError("the initial weights are not part of this problem; declare `initial=True` in the needs.")
        return self._initial

    @property
    def importance(self) -> Importance:
        if self._importance is None:
            raise AccessError("no kept importance is part of this problem; declare `importance=True` in the needs.")
        return self._importance

    @property
    def has_initial(self) -> bool:
        return self._initial is not None

    @property
    def has_recipe(self) -> bool:
        return self._recipe is not None

    @property
    def has_validation(self) -> bool:
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
    """The problem with exactly what is declared: no other sample, label or trained weight is reachable from it.

    Args:
        model: the trained model; where `needs.weights` is false, a copy with the initial weights takes its place.
        splits: "forget", "retain" and "validation", as far as they were given.
        needs: what the method declares.
        num_classes: number of logits.
        recipe: how the model was trained, if known; handed on if declared.
        initial: state dict that training started from, if known; handed on if declared.
        seed: for the draw of a label budget, and for initial weights where they are unknown.
        importance: of the training data, kept with the model; handed on if declared.

    Raises:
        UsageError: if the label budget is larger than the retain set.
    """
    handed = {}
    for name in ("forget", "retain", "validation"):
        access = getattr(needs, name)
        if access != "none" and name in splits:
            handed[name] = splits[name].sealed(labels=access == "labels")
    if needs.labelled:
        handed["labelled"] = label_budget(splits["retain"], needs.labelled, seed)
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
        _splits=handed,
        _recipe=recipe if needs.recipe else None,
        _importance=importance if needs.importance else None,
        _initial=parameter_names(model, initial) if initial and (needs.initial or not needs.weights) else None,
    )


def label_budget(retain: Split, amount: float, seed: int) -> Split:
    """A random part of the retained samples with their labels, sealed.

    Args:
        retain: the retained samples, with labels.
        amount: share of them in (0, 1), or their number, >= 1.
        seed: of the draw.
    """
    count = max(1, int(amount * len(retain))) if amount < 1 else int(amount)
    if count > len(retain):
        raise UsageError(f"labels of {count} retained samples are asked for, but there are only {len(retain)}.")
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(derive(seed, "label budget")))
    return retain.take(retain.index[order[:count]].sort().values, "labelled").sealed()
