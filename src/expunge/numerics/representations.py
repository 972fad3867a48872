"""Representations of the frozen original model, computed once, or per batch if samples are augmented."""

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
"""The matrix of representations (n, d) of an epoch, counted from 1."""


def features(body: Anatomy, split: Split, run: Run, augment: Augment | None = None, seed: int = 0) -> Tensor:
    """Representations (len(split), d), float32, in eval mode without gradients; optionally of augmented samples."""
    parts = []
    with evaluation_mode(body.model), torch.inference_mode(), run.autocast():
        for batch in split.batches(EVAL_BATCH, seed=seed, augment=augment, device=run.device, world=run.world):
            parts.append(batch.gather(body.features(batch.x).float()))
    return torch.cat(parts).clone()


class OriginalRepresentations:
    """The original model's representations of retained and forgotten samples.

    Without augmentation they are computed once and looked up by sample; with augmentation they depend on the random
    view, so they are computed per batch, without gradients.

    Args:
        body: structure of the original model.
        retain: the retained samples.
        forget: the forget set.
        run: device, precision and seeds.
        augment: the augmentation, or None.
    """

    def __init__(self, body: Anatomy, retain: Split, forget: Split, run: Run, augment: Augment | None) -> None:
        self._body, self._splits, self._run, self._augment = body, (retain, forget), run, augment
        self._known: tuple[PerSample, PerSample] | None = None
        if augment is None:
            self._known = (
                PerSample(retain, features(body, retain, run)),
                PerSample(forget, features(body, forget, run)),
            )

    def of(self, retained: Batch, forgotten: Batch) -> tuple[Tensor, Tensor]:
        """Representations (B_r, d) of a retain batch and (B_u, d) of a forget batch."""
        if self._known is not None:
            return self._known[0][retained.index], self._known[1][forgotten.index]
        with evaluation_mode(self._body.model), torch.no_grad(), self._run.autocast():
            t = self._body.features(torch.cat([retained.x, forgotten.x])).float()
        return retained.gather(t[: len(retained.x)]), forgotten.gather(t[len(retained.x) :])

    def views(self, which: Sequence[str], name: str, count: int) -> Views:
        """Matrices of representations for training a VAE.

        Args:
            which: "retain", "forget" or both.
            name: of the VAE, for its stream of random numbers.
            count: number of stored augmented views that epochs cycle through; 0: a new view every epoch.
        """
        chosen = [self._splits[("retain", "forget").index(w)] for w in which]
        if self._known is not None:
            matrix = torch.cat([self._known[("retain", "forget").index(w)].values for w in which])
            return lambda epoch: matrix

        def draw(view: int) -> Tensor:
            seed = self._run.seed_for("vae", name, "augment", view)
            return torch.cat([features(self._body, s, self._run, self._augment, seed) for s in chosen])

        cached: dict[int, Tensor] = {}

        def of_epoch(epoch: int) -> Tensor:
            if count == 0:
                return draw(epoch)
            view = (epoch - 1) % count
            if view not in cached:
                cached[view] = draw(view)
            return cached[view]

        return of_epoch
