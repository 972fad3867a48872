"""Representations of the frozen original model: computed once where nothing is augmented, anew where something is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from expunge.core.run import Run
from expunge.data.split import Augment, Batch, PerSample, Split
from expunge.models.anatomy import Anatomy
from expunge.models.modes import evaluation_mode
from expunge.training.inference import EVAL_BATCH

Views = Callable[[int], Tensor]
"""The matrix of representations (n, d) of a 1-based epoch."""


def features(body: Anatomy, split: Split, run: Run, augment: Augment | None = None, seed: int = 0) -> Tensor:
    """Representations (len(split), d), float32, eval mode, no gradients."""
    parts = []
    with evaluation_mode(body.model), torch.inference_mode(), run.autocast():
        for batch in split.batches(EVAL_BATCH, seed=seed, augment=augment, device=run.device, world=run.world):
            parts.append(batch.whole(body.features(batch.x).float()))
    return torch.cat(parts).clone()


class Teacher:
    """The original model's representations of retained and forgotten samples.

    Without augmentation they are computed once and looked up by sample; with it they depend on the drawn view, so
    they are computed for the batch at hand, without gradients.
    """

    def __init__(self, body: Anatomy, retain: Split, forget: Split, run: Run, augment: Augment | None) -> None:
        self._body, self._splits, self._run, self._augment = body, (retain, forget), run, augment
        self._known: tuple[PerSample, PerSample] | None = None
        if augment is None:
            self._known = (
                PerSample(retain, features(body, retain, run)),
                PerSample(forget, features(body, forget, run)),
            )

    def of(self, kept: Batch, gone: Batch) -> tuple[Tensor, Tensor]:
        """t of a retained (B_r, d) and of a forgotten batch (B_u, d)."""
        if self._known is not None:
            return self._known[0][kept.index], self._known[1][gone.index]
        with evaluation_mode(self._body.model), torch.no_grad(), self._run.autocast():
            t = self._body.features(torch.cat([kept.x, gone.x])).float()
        return kept.whole(t[: len(kept.x)]), gone.whole(t[len(kept.x) :])

    def views(self, which: Sequence[str], name: str, count: int) -> Views:
        """Matrices for a VAE: of "retain", "forget" or both. count: views that are kept and taken in turn; 0: fresh."""
        chosen = [self._splits[("retain", "forget").index(w)] for w in which]
        if self._known is not None:
            matrix = torch.cat([self._known[("retain", "forget").index(w)].values for w in which])
            return lambda epoch: matrix

        def draw(view: int) -> Tensor:
            seed = self._run.seed_for("vae", name, "augment", view)
            return torch.cat([features(self._body, s, self._run, self._augment, seed) for s in chosen])

        kept: dict[int, Tensor] = {}

        def of_epoch(epoch: int) -> Tensor:
            if count == 0:
                return draw(epoch)
            view = (epoch - 1) % count
            if view not in kept:
                kept[view] = draw(view)
            return kept[view]

        return of_epoch
