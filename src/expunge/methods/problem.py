"""The forgetting problem as one method sees it: the model, and only the data that the method declared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from expunge.core.errors import AccessError
from expunge.core.needs import Needs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from expunge.data.split import Split
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
    def has_initial(self) -> bool:
        return self._initial is not None

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
