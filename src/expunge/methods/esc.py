"""ESC: drop the directions in which the representations of the forget set are largest.

Paper      Lee, Park, Jeon, Hwang, Park: ESC: Erasing Space Concept for Knowledge Deletion, CVPR 2025, arXiv:2504.02199
Reference  KU-VGI/ESC, unlearn.py
Notation   h(x) representation (d,), logits W h + b; columns of U the left singular vectors of [h(x) for x in F], the
           largest first, without centring

    U_k the first k = floor(d p / 100) columns;    W <- W (I - U_k U_k^T)

Closed form, label-free: F is all that is read.
Cost       one forward pass over F and one singular value decomposition
Limits     the first direction is near the mean of all representations, so classes that share it are harmed, and a
           random F has no direction of its own. Like any change of the head it removes nothing from the extractor
Deviates   at least one direction is dropped (the code drops none where d p / 100 < 1); the projection is folded into
           the head, the code keeps it as a layer
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.core.options import Field
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, forward
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import linear_head
from expunge.training.inference import predict


def leading_directions(h: Tensor, percent: float) -> Tensor:
    """U_k (d, k), float64: the leading `percent` of the d directions of representations h (n, d), at least one.

    >>> leading_directions(torch.tensor([[0.0, 3.0], [0.0, -3.0], [1.0, 0.0]]), 50.0).abs()
    tensor([[0.],
            [1.]], dtype=torch.float64)
    """
    u, _, _ = torch.linalg.svd(h.double().T, full_matrices=False)
    return u[:, : max(1, int(h.shape[1] * percent / 100))]


@method("esc")
class ESC(Method):
    """Project the leading directions of the forget set out of the head."""

    preset_source: ClassVar[str] = "default of the reference"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"authors": {"p": 3.0}}  # default of the code

    p: float = Field(3.0, gt=0, le=100, description="directions to drop, in per cent of the representation's width")

    def cost(self, sizes: Sizes) -> Work:
        return forward(sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        parts, head = linear_head(student, problem.forget, run, "esc")
        u = leading_directions(predict(student, problem.forget, run.device, forward=parts.features), self.p)
        run.details["directions"] = u.shape[1]
        with torch.no_grad():
            weight = head.weight.double()
            head.weight.copy_((weight - (weight @ u) @ u.T).to(head.weight))
        return student
