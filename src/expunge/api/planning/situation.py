"""What is at hand when a request is to be fulfilled, in one typed value, and what it lets a method have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.needs import Needs
from expunge.core.options import Field, build, options
from expunge.data.split import Split
from expunge.methods.scaling import Sizes
from expunge.models.exact_head import exact_part
from expunge.training.recipe import Recipe
from expunge.training.sisa import Cost

Kind = Literal["samples", "class", "labels"]
Access = Literal[
    "forget labels", "retain inputs", "retain labels", "few labels", "validation labels", "recipe", "initial"
]
ACCESS: tuple[Access, ...] = get_args(Access)

# What a person would have to provide, by what is missing.
PROVIDE: dict[Access, str] = {
    "forget labels": "the labels of the samples to forget",
    "retain inputs": "the samples that stay",
    "retain labels": "the labels of the samples that stay",
    "few labels": "labels of a few samples that stay",
    "validation labels": "labelled held-out samples",
    "recipe": "the recipe that the model was trained with",
    "initial": "the weights that training started from",
}


@options
class Situation:
    """One batch of requests and what there is to fulfil it with. Sizes count samples."""

    forget: int = Field(ge=1, description="samples to forget")
    retain: int = Field(0, ge=0, description="training samples that stay")
    classes: int = Field(ge=1, description="classes that the model tells apart")
    labels: bool = Field(True, description="samples have labels")
    retain_data: bool = Field(True, description="the samples that stay can be read")
    validation: bool = Field(False, description="there are held-out samples with labels")
    recipe: Recipe | None = Field(None, description="how the model was trained; none: unknown")
    initial: bool = Field(False, description="the weights that training started from are known")
    sharded: Cost | None = Field(
        None, description="the model was trained in shards: what `ShardedTraining.forget_cost` says of this batch"
    )
    statistics: bool = Field(False, description="the model's head keeps the statistics that it can delete from exactly")
    whole_class: bool = Field(False, description="every training sample of a class is to be forgotten")
    wrong_labels: bool = Field(False, description="the labels of the samples to forget are wrong")
    batchnorm: bool = Field(False, description="the model has BatchNorm layers")
    certified: bool = Field(False, description="where nothing exact fits, only a method with a guarantee will do")
    budget_seconds: float | None = Field(None, gt=0, description="most seconds for unlearning; none: no limit")
    accept: tuple[Access, ...] = Field(
        ACCESS, description="what methods may be handed beside the inputs of the samples to forget"
    )

    @property
    def sizes(self) -> Sizes:
        """What a method's defaults and its cost go by."""
        return Sizes(self.forget, self.retain, self.recipe, self.classes, self.sharded, self.wrong_labels or None)

    @property
    def kind(self) -> Kind:
        """What the request is about. Wrong labels come first: a class of which all labels are wrong is a repair."""
        return "labels" if self.wrong_labels else "class" if self.whole_class else "samples"

    @property
    def at_hand(self) -> frozenset[Access]:
        """What there is, allowed or not."""
        kept = self.retain_data and self.retain > 0
        there: dict[Access, bool] = {
            "forget labels": self.labels,
            "retain inputs": kept,
            "retain labels": kept and self.labels,
            "few labels": kept and self.labels,
            "validation labels": self.validation,
            "recipe": self.recipe is not None,
            "initial": self.initial,
        }
        return frozenset(name for name, present in there.items() if present)

    def lacking(self, needs: Needs) -> tuple[Access, ...]:
        """What a method with these needs asks for and is not there, or not allowed; labels lack their samples too."""
        wanted = wanted_access(needs)
        lack = {name for name in wanted if name not in self.at_hand or name not in self._allowed}
        if "retain labels" in lack and "retain inputs" not in self.at_hand:
            lack.add("retain inputs")
        return tuple(name for name in ACCESS if name in lack)

    def missing(self, needs: Needs) -> list[str]:
        """What keeps a method with these needs from running, as phrases that follow its name; empty if nothing does."""
        lack = self.lacking(needs)
        absent = tuple(name for name in lack if name not in self.at_hand)
        closed = tuple(name for name in lack if name in self.at_hand)
        phrases = [("needs", absent), ("is not allowed to read", closed)]
        return [f"{verb} {provide(names)}" for verb, names in phrases if names]

    @property
    def _allowed(self) -> frozenset[Access]:
        """`accept`; who allows all labels of the samples that stay allows some of them, and their inputs."""
        more: set[Access] = set(self.accept)
        if "retain labels" in more:
            more |= {"few labels", "retain inputs"}
        return frozenset(more)


def provide(names: Sequence[Access]) -> str:
    """What a person would have to provide, in words.

    >>> provide(("retain inputs", "retain labels"))
    'the samples that stay with their labels'
    """
    together = {"retain inputs", "retain labels"} <= set(names)
    words = [PROVIDE[name] for name in names if not (together and name == "retain labels")]
    if together:
        words[words.index(PROVIDE["retain inputs"])] += " with their labels"
    return " and ".join(words)


def situation_of(model: nn.Module, forget: Split, retain: Split | None, /, **rest: Any) -> Situation:
    """A situation of real splits; `rest` are further fields of `Situation`, and replace what is found here.

    retain: None where the samples that stay cannot be read.
    """
    names = set(forget.y.tolist()) if forget.has_labels else set()
    kept = set(retain.y.tolist()) if retain is not None and retain.has_labels else names
    found = {
        "forget": len(forget),
        "retain": 0 if retain is None else len(retain),
        "classes": forget.num_classes,
        "labels": forget.has_labels and (retain is None or retain.has_labels),
        "retain_data": retain is not None,
        "whole_class": bool(names) and not names & kept,
        "statistics": exact_part(model) is not None,
        "batchnorm": any(isinstance(module, _BatchNorm) for module in model.modules()),
    }
    return build(Situation, {**found, **rest})


def wanted_access(needs: Needs) -> set[Access]:
    """The kinds of access that a declaration cannot do without, beside the inputs of the samples to forget.

    >>> sorted(wanted_access(Needs(forget="inputs", retain="labels")))
    ['retain labels']
    """
    wanted: dict[Access, bool] = {
        "forget labels": needs.forget == "labels",
        "retain inputs": needs.retain == "inputs",
        "retain labels": needs.retain == "labels",
        "few labels": needs.labelled > 0,
        "validation labels": needs.validation != "none" and "validation" not in needs.optional,
        "recipe": needs.recipe and "recipe" not in needs.optional,
        "initial": needs.initial and "initial" not in needs.optional,
    }
    return {name for name, asked in wanted.items() if asked}
