"""Data access declarations: what a method needs, which is all that its problem contains.

The declaration is enforced (`methods.problem`), tested for every registered method, and printed in every report, so
"label-free" and "forget-set-only" are verified properties.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

Access = Literal["none", "inputs", "labels"]
_RANK = {"none": 0, "inputs": 1, "labels": 2}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Access per split: `none`, `inputs` (samples without labels) or `labels` (samples with labels).

    Attributes:
        forget: access to the forget set.
        retain: access to the retain set.
        validation: access to held-out samples.
        weights: whether the trained weights are read (False: only the architecture, as for exact retraining).
        recipe: whether the training recipe is read.
        initial: whether the initial weights are read.
        importance: whether the importance of the training data is read, which was stored with the model.
        labelled: label budget: retained samples with labels (share below 1, or a number), drawn before the method
            starts.
        optional: names among the splits, `recipe` and `initial` that the method reads if given, but does not require.
    """

    forget: Access = "none"
    retain: Access = "none"
    validation: Access = "none"
    weights: bool = True
    recipe: bool = False
    initial: bool = False
    importance: bool = False
    labelled: float = 0.0
    optional: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        """The union of two declarations."""
        widest = {
            name: max(getattr(self, name), getattr(other, name), key=_RANK.__getitem__)
            for name in ("forget", "retain", "validation")
        }
        rest = [f.name for f in fields(self) if f.name not in (*widest, "optional")]
        flags = {name: max(getattr(self, name), getattr(other, name)) for name in rest}
        wanting = {
            name: [needs for needs in (self, other) if getattr(needs, name) not in ("none", False)]
            for name in (*widest, "recipe", "initial")
        }
        optional = tuple(n for n, both in wanting.items() if both and all(n in needs.optional for needs in both))
        return replace(self, **widest, **flags, optional=optional)

    @property
    def label_free(self) -> bool:
        """True if no label of any split is accessible."""
        return "labels" not in (self.forget, self.retain, self.validation) and self.labelled == 0

    @property
    def forget_set_only(self) -> bool:
        """True if the forget set is the only accessible data."""
        return self.retain == "none" and self.validation == "none"

    def describe(self) -> dict[str, str]:
        """One short phrase per kind of access, for tables.

        >>> Needs(forget="inputs").describe()["forget"]
        'inputs only'
        """
        phrase_of = {"none": "-", "inputs": "inputs only", "labels": "inputs and labels"}
        phrases = {name: phrase_of[getattr(self, name)] for name in ("forget", "retain", "validation")}
        for name in phrases.keys() & set(self.optional):
            phrases[name] += ", where given"
        if self.labelled:
            budget = f"{self.labelled:.0%}" if self.labelled < 1 else f"{self.labelled:.0f} samples"
            phrases["retain"] += f", labels of {budget}"
        extras = [name for name in ("recipe", "initial", "importance") if getattr(self, name)]
        phrases["trained weights"] = "yes" if self.weights else "-"
        names = {"recipe": "training recipe", "initial": "initial weights", "importance": "kept importance"}
        for name in names.keys() & set(self.optional):
            names[name] += " where known"
        phrases["also"] = ", ".join(names[extra] for extra in extras) or "-"
        return phrases
