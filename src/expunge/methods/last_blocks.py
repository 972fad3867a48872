"""CF-k and EU-k: fine-tune (CF) or retrain (EU) only the last k blocks, on the retained samples.

Paper      Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru, arXiv:2201.06640; the settings are those of Kurmanji et al.
Rule       w = (body, last k blocks, head). CF-k starts at the trained weights; EU-k resets the last k blocks to their
           initial weights. Then these parts alone are trained by cross-entropy on D_r.
Claim      EU-k forgets exactly what only the reset part stores; nothing is claimed about the body
Cost       `epochs` passes over D_r; backward passes end at the first trained block
Deviates   from the public code (`<family>/faithful`), which leaves the head frozen (`head="frozen"`), keeps BatchNorm
           statistics of reset blocks (`buffers=False`), and in EU-k drops to a fraction of SCRUB's rate (`drop_from`),
           counting epochs from 0. With All-CNN, EU-k resets the head *and* leaves it frozen (`head="reset"`):
           `<family>/faithful/allcnn`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from expunge.core.options import Field, build, options
from expunge.core.run import Run
from expunge.methods import scaling
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import with_decay
from expunge.models.anatomy import Anatomy, anatomy, reset_parameters, set_trainable
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe, learning_rate

# What the SCRUB authors' code does: BatchNorm frozen with L2-SP, or plain training. Its notebook for large RB has
# neither method: there we take large RC's settings, without decay and with CF-k's batch size.
_FROZEN_SMALL: dict[str, Any] = {"batchnorm": "frozen", "l2_reference": 0.1}
_FROZEN_LARGE: dict[str, Any] = {"batchnorm": "frozen", "l2_reference": 5e-4}
_PLAIN: dict[str, Any] = {"batchnorm": "train"}
_FAMILIES: dict[str, dict[str, Any]] = {
    "small-rb": {**_FROZEN_SMALL, "batch_size": 128},
    "small-rc": {**_FROZEN_SMALL, "batch_size": 128},
    "large-rb": {**_FROZEN_LARGE, "batch_size": 128},
    "large-rc": {**_FROZEN_LARGE, "batch_size": 128},
    "up": {**_PLAIN, "batch_size": 64},
    "vgg": {**_PLAIN, "batch_size": 64},
    "resnet50": {**_PLAIN, "batch_size": 64},
}
_DECAY: dict[str, Any] = {"weight_decay": 5e-4}  # large RC has it inside the optimiser, in addition to L2-SP
_EU_BATCH = {"large-rc": 64}  # where EU-k's batch differs from CF-k's
_EU_EPOCHS = {"small-rb": 30, "small-rc": 30, "large-rb": 25, "large-rc": 25, "up": 25}
_AFTER_SCRUB = ("small-rb", "small-rc", "large-rb", "large-rc")  # also the families whose model is All-CNN


def _eu_faithful(family: str) -> dict[str, Any]:
    """EU-k as the authors' code runs it; for VGG16 and ResNet-50 it stops with an error, so those settings are ours."""
    values = {**_FAMILIES[family], "head": "frozen", "buffers": False}
    values["batch_size"] = _EU_BATCH.get(family, values["batch_size"])
    values["milestones"] = (11, 16, 21)  # 10, 15, 20 of epochs that count from 0
    if family in _EU_EPOCHS:  # one less than the originals train
        values["epochs"] = _EU_EPOCHS[family]
    if family in _AFTER_SCRUB:  # the drop overwrites EU-k's 0.01 by a fraction of the rate SCRUB has left behind
        values["drop_from"] = 5e-4
    return {**values, **_DECAY} if family == "large-rc" else values


@options
class LastBlocks(IterativeMethod):
    """Options and training of CF-k and EU-k."""

    parallel: ClassVar[bool] = True

    k: int = Field(1, ge=1, description="number of blocks before the head that are trained")
    head: Literal["trained", "frozen", "reset"] = Field(
        "trained", description="the head is trained (EU-k: reset first), kept, or reset and left frozen"
    )
    lr: float = Field(0.01, gt=0, description="base learning rate")
    batch_size: int = Field(128, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="update rule")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    l2_reference: float = Field(0.0, ge=0, description="strength of the pull to the weights it starts from (L2-SP)")
    milestones: tuple[int, ...] = Field((10, 15, 20), description="rate x `decay` for each milestone < epoch")
    decay: float = Field(0.1, gt=0, le=1, description="factor at each milestone")
    drop_from: float | None = Field(
        None, gt=0, description="rate that `decay` applies to after a milestone; none: `lr`"
    )
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while training")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 1."""
        return learning_rate(
            epoch,
            base=self.lr,
            schedule="milestones",
            milestones=self.milestones,
            decay=self.decay,
            drop_from=self.drop_from,
        )

    def parts(self, student: nn.Module, problem: Problem, run: Run) -> Anatomy:
        """Blocks and head of the student, as a batch of retained samples runs through them."""
        batch = next(iter(problem.retain.batches(2, device=run.device)))
        return anatomy(student, batch.x)

    def train_parts(self, student: nn.Module, problem: Problem, run: Run, structure: Anatomy, epochs: int) -> nn.Module:
        """Train the last k blocks, and the head if `head="trained"`, by cross-entropy on the retained samples."""
        blocks = structure.last_blocks(self.k)
        set_trainable(student, [*blocks, structure.head] if self.head == "trained" else blocks)
        run.details["trained_modules"] = [name for name in (*blocks, structure.head) if _trains(student, name)]
        names = ("lr", "batch_size", "optimizer", "momentum", "weight_decay", "l2_reference", "batchnorm")
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values |= {"epochs": epochs, "schedule": "constant", "precision": run.precision}  # `rate` has the schedule
        recipe = build(Recipe, values)
        return train_model(student, problem.retain, recipe, run, purpose=self.card.name, rate=self.rate)

    def reset(self, student: nn.Module, problem: Problem, run: Run, names: list[str], *, buffers: bool) -> None:
        """Reset modules to their initial weights, or to random ones if `problem.initial` is unknown.

        Args:
            student: the model, changed in place.
            problem: with the initial weights, if they are known.
            run: seeds; gets a note if the initial weights are unknown.
            names: the modules.
            buffers: whether BatchNorm statistics are reset too.
        """
        buffers_before = {name: value.detach().clone() for name, value in student.named_buffers()}
        if problem.has_initial:
            prefixes = tuple(f"{name}." for name in names)
            start = {key: value for key, value in problem.initial.items() if key.startswith(prefixes)}
            student.load_state_dict(start, strict=False)
        else:
            reset_parameters(student, names, seed=run.seed_for("start weights"))
            run.notes.append("the initial weights are unknown; the reset modules got random ones: pass initial=...")
        if not buffers:
            with torch.no_grad():
                for name, buffer in student.named_buffers():
                    buffer.copy_(buffers_before[name])


@method("cf-k")
class CFk(LastBlocks):
    """Catastrophic forgetting of the last k blocks: fine-tune them, keep everything else."""

    preset_source: ClassVar[str] = (
        "the experiment families of the SCRUB authors' notebooks; `faithful`: with their head frozen"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        **{family: with_decay(values) for family, values in _FAMILIES.items()},
        **{f"{family}/faithful": {**values, "head": "frozen"} for family, values in _FAMILIES.items()},
        "large-rc/faithful": {**_FAMILIES["large-rc"], **_DECAY, "head": "frozen"},
    }

    epochs: int = Field(10, ge=0, description="passes over the retained samples")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """Epochs and learning rate follow the recipe."""
        lr = scaling.rate(sizes, 0.01, 0.1, momentum=self.momentum)
        return {"epochs": scaling.passes(sizes, 10), "lr": lr}

    def cost(self, sizes: Sizes) -> Work:
        # At most: backward passes end at the first block that is trained.
        return steps(sizes.retain, self.batch_size, self.epochs).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        structure = self.parts(student, problem, run)
        if self.head == "reset":
            self.reset(student, problem, run, [structure.head], buffers=False)
        return self.train_parts(student, problem, run, structure, self.epochs)


@method("eu-k")
class EUk(LastBlocks):
    """Exact unlearning of the last k blocks: reset to their initial weights, then trained on the retained samples."""

    preset_source: ClassVar[str] = (
        "the experiment families of the SCRUB authors' notebooks; `faithful`: with their head frozen"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        **{family: {**with_decay(values), "batch_size": _EU_BATCH.get(family, values["batch_size"])}
           for family, values in _FAMILIES.items()},
        **{f"{family}/faithful": _eu_faithful(family) for family in _FAMILIES},
        **{f"{family}/faithful/allcnn": {**_eu_faithful(family), "head": "reset"} for family in _AFTER_SCRUB},
    }  # fmt: skip

    epochs: int | None = Field(None, ge=0, description="passes over the retained samples; none: those of the recipe")
    buffers: bool = Field(True, description="reset the BatchNorm statistics of the reset blocks too")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """The reset part is trained with the recipe's optimiser, learning rate, batch size and weight decay."""
        recipe = sizes.recipe
        if recipe is None:
            return {}
        return {
            "optimizer": recipe.optimizer,
            "lr": recipe.lr,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
            "batch_size": recipe.batch_size,
            "milestones": tuple(round(part * recipe.epochs) for part in (0.5, 0.75, 0.9)),
        }

    def cost(self, sizes: Sizes) -> Work | None:
        if self.epochs is None and sizes.recipe is None:
            return None
        epochs = sizes.recipe.epochs if self.epochs is None and sizes.recipe is not None else self.epochs or 0
        return steps(sizes.retain, self.batch_size, epochs).at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        structure = self.parts(student, problem, run)
        blocks = list(structure.last_blocks(self.k))
        names = blocks if self.head == "frozen" else [*blocks, structure.head]
        self.reset(student, problem, run, names, buffers=self.buffers)
        epochs = problem.recipe.epochs if self.epochs is None else self.epochs
        return self.train_parts(student, problem, run, structure, epochs)


def _trains(model: nn.Module, name: str) -> bool:
    return any(p.requires_grad for p in model.get_submodule(name).parameters())
