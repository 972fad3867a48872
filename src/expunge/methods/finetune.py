"""Fine-tuning: continue training on the retained samples only.

    min over w:  (1/N_r) sum over D_r of CE(f(x; w), y),   starting at the trained weights

Claim      none: it relies on catastrophic forgetting. The weakest baseline that keeps utility.
Cost       `epochs` passes over the retained samples
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from expunge.core.options import Field, build
from expunge.core.run import Run
from expunge.methods import scaling
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import with_decay
from expunge.training.loop import train_model
from expunge.training.recipe import Recipe

# Code of the SCRUB authors: BatchNorm frozen with L2-SP, or plain training; no weight decay inside the optimiser.
_FAITHFUL: dict[str, dict[str, Any]] = {
    "small-rb": {"batchnorm": "frozen", "l2_reference": 0.1},
    "small-rc": {"batchnorm": "frozen", "l2_reference": 0.1},
    "large-rb": {},
    "large-rc": {"batch_size": 64, "batchnorm": "frozen", "l2_reference": 5e-4},
    "up": {"lr": 0.04, "batch_size": 32},
    "vgg": {"lr": 0.04},
    "resnet50": {"lr": 0.04},
}


@method("finetune")
class Finetune(IterativeMethod):
    """Cross-entropy on the retained samples; defaults are those of the SCRUB paper's large-scale runs.

    `finetune/<family>` has the settings of an experiment family; `finetune/<family>/faithful` omits weight decay, as
    the authors' code does.
    """

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = (
        "the experiment families of the SCRUB authors' notebooks; `faithful`: without the weight decay "
        "their code leaves out"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        **{name: with_decay(values) for name, values in _FAITHFUL.items()},
        **{f"{name}/faithful": values for name, values in _FAITHFUL.items()},
    }

    epochs: int = Field(10, ge=0, description="passes over the retained samples")
    lr: float = Field(0.01, gt=0, description="learning rate, constant")
    batch_size: int = Field(128, ge=1, description="samples per step")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="update rule")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(0.0, ge=0, description="L2 strength inside the optimiser")
    l2_reference: float = Field(0.0, ge=0, description="strength of the pull to the trained weights (L2-SP)")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while training")

    def scaled(self, sizes: Sizes) -> Mapping[str, Any]:
        """The recipe's optimiser at half of its learning rate, for a share of its epochs."""
        recipe = sizes.recipe
        if recipe is None:
            return {}
        return {
            "epochs": scaling.passes(sizes, 10),
            "lr": 0.5 * recipe.lr,
            "batch_size": recipe.batch_size,
            "optimizer": recipe.optimizer,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
        }

    def cost(self, sizes: Sizes) -> Work:
        return steps(sizes.retain, self.batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        names = (
            "epochs",
            "lr",
            "batch_size",
            "optimizer",
            "momentum",
            "weight_decay",
            "l2_reference",
            "batchnorm",
        )
        values = {name: getattr(self, name) for name in names}
        recipe = build(Recipe, {**values, "schedule": "constant", "precision": run.precision})
        return train_model(problem.student(), problem.retain, recipe, run, purpose="finetune")
