"""GS-LoRA: low-rank changes of linear layers that forget, under a penalty that leaves most layers alone.

Paper      Zhao, Ni, Fan, Wang, Chen, Meng, Zhang: Continual Forgetting for Pre-trained Vision Models, CVPR 2024,
           arXiv:2403.11530 (second-hand: no figure is claimed)
Notation   W_l weight of linear layer l, A_l (rank x in) drawn as by Kaiming, B_l (out x rank) = 0 at the start

    W_l + B_l A_l in place of W_l;   min over A, B:
        CE(R batch) + beta relu(bound - CE(F batch)) + alpha sum over l of (|A_l| + |B_l|)         Frobenius norms
    AdamW. Afterwards the changes are added to the weights, so the result is a model like the one that was given

Layers     every `nn.Linear` below the head: query, key, value, projection and MLP of a transformer; `layers=mlp`: only
           those that change the width, as published. Tied weights share one change
Cost       epochs x passes over R with a batch of F beside each; fewer weights learn, the passes are whole ones
Limits     `nn.MultiheadAttention` keeps query, key and value in one bare tensor, which stays as it is. The change is
           a low-rank difference to the old weights: whoever has both models sees it. Convolutional nets have next to
           no such layer
Deviates   the penalty has no warm-up
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.errors import UsageError
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.anatomy import anatomy
from expunge.models.modes import training_mode
from expunge.training.recipe import make_optimizer


class LowRank(nn.Module):
    """B A, the change of one weight."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, inner = weight.shape
        bound = 1 / math.sqrt(inner)
        drawn = (2 * torch.rand(rank, inner, generator=generator) - 1) * bound
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(weight.new_zeros(out, rank))

    def forward(self) -> Tensor:
        return self.b @ self.a

    def size(self) -> Tensor:
        """|A| + |B|; the gradient of |B| at 0 is 0."""
        return self.a.norm() + torch.linalg.vector_norm(self.b)


@method("gs-lora")
class GSLoRA(IterativeMethod):
    """Group-sparse low-rank forgetting, for transformers and other networks made of linear layers."""

    rank: int = Field(8, ge=1, description="of the changes")
    layers: Literal["all", "mlp"] = Field("all", description="linear layers below the head, or those that change width")
    bound: float = Field(5.0, gt=0, description="loss on the forget set above which it is left alone")
    beta: float = Field(0.2, ge=0, description="weight of forgetting")
    alpha: float = Field(1e-3, ge=0, description="weight of the group penalty")
    epochs: int = Field(5, ge=0, description="passes over the retained samples")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW, constant")
    retain_batch_size: int = Field(64, ge=1, description="retained samples per step")
    forget_batch_size: int = Field(64, ge=1, description="samples to forget per step")
    weight_decay: float = Field(0.0, ge=0, description="decoupled decay of the changes")
    batchnorm: Literal["train", "frozen"] = Field("frozen", description="BatchNorm while unlearning")

    def cost(self, sizes: Sizes) -> Work:
        return paired_steps(sizes.retain, sizes.forget, self.retain_batch_size, self.forget_batch_size, self.epochs)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        names = self.names(student, next(iter(problem.retain.batches(2, device=run.device))).x)
        generator = torch.Generator().manual_seed(run.seed_for("low rank"))
        weights = dict(student.named_parameters())
        start = {name: weights[name].detach().clone() for name in names}
        pairs = [(name, LowRank(start[name], self.rank, generator)) for name in names]
        changes = nn.ModuleList([change for _, change in pairs])
        optimizer = make_optimizer("adamw", changes.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        forget_batches = endless(problem.forget, self.forget_batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs, state=[changes, optimizer, forget_batches]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("retain", "shuffle", epoch.number)
            for retained in problem.retain.batches(self.retain_batch_size, shuffle=True, seed=seed, device=run.device):
                forgotten = next(forget_batches)
                changed = {name: start[name] + change() for name, change in pairs}
                with run.autocast():
                    retain_loss = F.cross_entropy(functional_call(student, changed, (retained.x,)).float(), retained.y)
                    forget_loss = F.cross_entropy(
                        functional_call(student, changed, (forgotten.x,)).float(), forgotten.y
                    )
                penalty = torch.stack([change.size() for _, change in pairs]).sum()
                loss = retain_loss + self.beta * F.relu(self.bound - forget_loss) + self.alpha * penalty
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for name, change in pairs:
                        weights[name].copy_(start[name] + change())
                epoch.add("retain_loss", retain_loss, len(retained))
                epoch.add("forget_loss", forget_loss, len(forgotten))
        run.details["changes"] = {name: float(change().norm().detach()) for name, change in pairs}
        return student

    def names(self, model: nn.Module, sample: Tensor) -> list[str]:
        """Names of the weights that get a change, each tensor once.

        Raises:
            UsageError: If there is none.
        """
        head = anatomy(model, sample).head
        known = dict(model.named_parameters())
        chosen = []
        for name, module in model.named_modules():
            weight = f"{name}.weight" if name else "weight"
            if not isinstance(module, nn.Linear) or name == head or name.startswith(f"{head}.") or weight not in known:
                continue
            if self.layers == "all" or module.in_features != module.out_features:
                chosen.append(weight)
        if not chosen:
            raise UsageError("gs-lora: the model has no linear layer below its head to change; choose another method.")
        return chosen
