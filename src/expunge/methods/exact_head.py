"""Exact deletion from a closed-form head: take the samples' terms out of the sufficient statistics and solve again.

Paper      Quan, Wu, Montana, 2026, arXiv:2603.12977, for ridge heads (by its abstract; no figure of it is claimed); the
           downdate is textbook linear algebra, and LDA is ours
Equation   models/exact_head.py:  n_c, s_c and M lose the terms of F, then w and b follow as when they were fitted

Exact      the head equals the one fitted on R alone, up to rounding (tested: 1e-6 relative, float64), for any number of
           deletions in any order; nothing about F is left in the statistics
Cost       one forward pass over F, and one solve of a d x d system: milliseconds for d up to about 1,000
Limits     only for models of `expunge.fit_head`. Exact for the head: a backbone that was itself trained on the samples
           still knows them. Which samples stayed is in no way hidden by it
"""

from __future__ import annotations

import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.run import Run
from expunge.methods.base import Method, method
from expunge.methods.cost import Work, forward
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.exact_head import DoublePasses, exact_part


@method("exact-head")
class ExactHeadDeletion(Method):
    """Needs the forget set alone: everything else is in the statistics that the model keeps."""

    def cost(self, sizes: Sizes) -> Work:
        return forward(sizes.forget)

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        part = exact_part(student)
        if part is None:
            raise UsageError(
                "exact-head: the model keeps no statistics to delete from; fit its head with expunge.fit_head, or "
                "choose another method."
            )
        head = part.head
        if not head.is_solved():
            raise UsageError(
                "exact-head: the head is not the one that its statistics give, so something else has trained it since; "
                "fit it again with expunge.fit_head."
            )
        with run.stage("deletion"), torch.no_grad():
            passes = DoublePasses(part.backbone)
            for batch in problem.forget.batches(256, device=run.device):
                head.update(passes(batch.x).flatten(1), batch.y, -1)
            lacking = (head.counts < -0.5).nonzero().flatten().tolist()
            if lacking:
                raise UsageError(
                    f"exact-head: more samples of class {lacking[0]} are to be forgotten than the head was fitted on; "
                    "pass samples of its training data."
                )
            head.counts.round_()
            head.solve()
        run.details["certificate"] = {"kind": "exact", "of": "head", "samples left": int(head.counts.sum())}
        run.notes.append(
            "exact for the head: it equals one fitted without the forgotten samples; the backbone is taken never to "
            "have been trained on them."
        )
        return student
