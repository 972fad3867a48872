"""Targeted adversarial examples within an L2 ball (PGD), for many images and restarts at once.

Notation   x image in pixel space, box [lo, hi] (images: [0, 1]), t target class, d perturbation, all norms per image

    start      u uniform in the box;  d = u - x;  d = d min(1, eps/||d||);  d = clip(x + d) - x
    repeat     g = gradient of CE(f(x + d), t) in d;   d = d - a g / max(||g||, 1e-6)
               d = clip(x + d) - x;   d = d min(1, eps/||d||)
    result     clip(x + d)

The model is in eval mode, its weights need no gradient and its BatchNorm statistics do not change (they are folded into
the convolutions if possible). Normalisation is part of the model: budget and box are in pixels. Starts are drawn per
restart before batches are formed, so the batch size affects memory and speed only.
Cost       iterations x (forward + backward to the input) per image and restart; `early_stop` skips images that have
           reached their target
Source     Cha et al., AAAI 2024, arXiv:2301.11578: targeted L2-PGD, as in the authors' code
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.entries import record
from expunge.core.errors import CheckpointError, ExpungeError, UsageError
from expunge.core.identity import code_hash
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.core.shelf import claimed, doubt
from expunge.data.origin import Facts
from expunge.models.checkpoint import read_metadata, read_weights, save_state, weights_hash
from expunge.models.fold import folded
from expunge.models.identity import model_code
from expunge.models.modes import evaluation_mode


@dataclass(frozen=True, eq=False)
class PixelSpace:
    """Conversion between pixels and model units, and the box of allowed pixels.

    Attributes:
        mean: of the normalisation, broadcast over samples.
        std: of the normalisation, broadcast over samples.
        low: smallest pixel.
        high: largest pixel.
    """

    mean: Tensor
    std: Tensor
    low: float
    high: float

    @classmethod
    def of(cls, x: Tensor, normalisation: tuple[Tensor, Tensor] | None) -> PixelSpace:
        """Space of given samples.

        Args:
            x: samples in model units. If their pixels are within [0, 1], that is the box; else it is their range.
            normalisation: mean and standard deviation, or None.

        Raises:
            UsageError: for integer samples, which cannot be changed along a gradient.
        """
        if not x.is_floating_point():
            raise UsageError(
                f"samples of {str(x.dtype).removeprefix('torch.')} cannot be changed along a gradient, which this "
                "method needs; choose one that does not attack its inputs, such as scrub or finetune."
            )
        mean, std = normalisation if normalisation is not None else (x.new_zeros(()), x.new_ones(()))
        pixels = x * std + mean
        low, high = float(pixels.min()), float(pixels.max())
        inside = low >= -1e-4 and high <= 1 + 1e-4
        return cls(mean, std, 0.0 if inside else low, 1.0 if inside else high)

    def pixels(self, x: Tensor) -> Tensor:
        """Pixels of samples in model units, clipped to the box."""
        return (x * self.std + self.mean).clamp(self.low, self.high)

    def seen(self, pixels: Tensor) -> Tensor:
        """Samples in model units of pixels."""
        return (pixels - self.mean) / self.std

    def distances(self, images: Tensor, x: Tensor) -> Tensor:
        """L2 norm (restarts * k,) of the change of images (restarts * k, ...), in pixels; x (k, ...) in model units."""
        whole = self.pixels(x).repeat(len(images) // len(x), *[1] * (x.dim() - 1))
        return _norm(images - whole).flatten()


@dataclass(frozen=True, kw_only=True)
class L2PGD:
    """Targeted PGD within an L2 ball.

    Attributes:
        eps: radius, in pixels, over all pixels of an image.
        step: length of one step.
        iterations: number of steps.
        batch: images attacked at a time.
        early_stop: whether images that reached their target are attacked no further.
    """

    eps: float = 4.0
    step: float = 0.1
    iterations: int = 100
    batch: int = 64
    early_stop: bool = False

    def attack(
        self, model: nn.Module, pixels: Tensor, targets: Tensor, space: PixelSpace, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Run the attack.

        Args:
            model: classifier of samples in model units.
            pixels: images (k, *shape).
            targets: target classes (restarts, k).
            space: box and normalisation.
            seed: of the starts.

        Returns:
            Adversarial pixels (restarts * k, *shape), all images of the first restart first, and whether each reached
            its target, bool (restarts * k,).
        """
        images, reached = [], []
        model = folded(model, space.seen(pixels[:2]))
        with evaluation_mode(model):
            for rows, starts in self._rows(pixels, len(targets), space, seed):
                x, t = pixels[rows % len(pixels)], targets.flatten()[rows]
                adversarial = self._descend(model, x, starts, t, space)
                with torch.inference_mode():
                    reached.append(model(space.seen(adversarial)).argmax(1) == t)
                images.append(adversarial)
        return torch.cat(images), torch.cat(reached)

    def _rows(self, pixels: Tensor, restarts: int, space: PixelSpace, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of attacks, as rows of the (restart, image) table flattened by restart, with their random starts."""
        count = len(pixels)
        starts_by_restart: dict[int, Tensor] = {}
        for rows in torch.arange(restarts * count).split(self.batch):
            needed = sorted(set((rows // count).tolist()))
            starts_by_restart = {
                r: starts_by_restart[r] if r in starts_by_restart else self._uniform(pixels, space, seed, r)
                for r in needed
            }
            starts = torch.stack([starts_by_restart[int(row) // count][int(row) % count] for row in rows])
            yield rows.to(pixels.device), starts

    def _uniform(self, pixels: Tensor, space: PixelSpace, seed: int, restart: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive(seed, "attack start", restart))
        drawn = torch.rand(pixels.shape, generator=generator, dtype=pixels.dtype).to(pixels.device)
        return space.low + (space.high - space.low) * drawn

    def _descend(self, model: nn.Module, x: Tensor, starts: Tensor, t: Tensor, space: PixelSpace) -> Tensor:
        d = _into_box(x, _into_ball(starts - x, self.eps), space)
        active = torch.arange(len(x), device=x.device)
        for _ in range(self.iterations):
            inputs = (x[active] + d[active]).requires_grad_(True)
            with torch.enable_grad():
                logits = model(space.seen(inputs))
                (g,) = torch.autograd.grad(F.cross_entropy(logits, t[active], reduction="sum"), inputs)
            if self.early_stop:
                unreached = logits.detach().argmax(1) != t[active]
                if not bool(unreached.any()):
                    break
                g, active = g[unreached], active[unreached]
            moved = d[active] - self.step * g / _norm(g).clamp(min=1e-6)
            d[active] = _into_ball(_into_box(x[active], moved, space), self.eps)
        return (x + d).clamp(space.low, space.high)


def _norm(d: Tensor) -> Tensor:
    """L2 norm per image, shaped to broadcast."""
    return d.flatten(1).norm(dim=1).reshape(-1, *[1] * (d.dim() - 1))


def _into_ball(d: Tensor, eps: float) -> Tensor:
    return d * (eps / _norm(d).clamp(min=1e-12)).clamp(max=1.0)


def _into_box(x: Tensor, d: Tensor, space: PixelSpace) -> Tensor:
    return (x + d).clamp(space.low, space.high) - x


def attack_cached(
    settings: L2PGD,
    model: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    space: PixelSpace,
    run: Run,
    *,
    origin: Facts | None = None,
) -> tuple[Tensor, Tensor]:
    """`L2PGD.attack`, or its stored result in `run.cache`; the seconds of the attack count either way.

    Compared methods share one attack: Adv and Adv+Imp, both goals. Arguments and results as in `L2PGD.attack`; `origin`
    names the samples that the images are made of, recorded with them.
    """
    if run.cache is None:
        with run.stage("attack"):
            return settings.attack(model, pixels, targets, space, run.seed)
    facts: list[Any] = [code_hash(__name__), model_code(model), torch.__version__]
    facts += [repr(model), weights_hash(model), repr(settings), run.seed]
    facts += [space.low, space.high, *(_bytes(t) for t in (pixels, targets, space.mean, space.std))]
    file = run.cache / "attacks" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.safetensors"
    doubted = doubt(file.parent)
    if doubted is not None:
        run.notes.append(doubted)
        with run.stage("attack"):
            return settings.attack(model, pixels, targets, space, run.seed)
    before = run.elapsed()
    with claimed(file) as problem:
        run.count_seconds(before - run.elapsed())  # the time of waiting for another worker's attack is not counted
        stored = _load(file)
        if stored is not None:
            run.count_seconds(float(stored["seconds"]), "attack")
            return stored["images"].to(pixels.device), stored["reached"].to(pixels.device)
        start = time.perf_counter()
        with run.stage("attack"):
            images, reached = settings.attack(model, pixels, targets, space, run.seed)
        seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        tensors = {"images": images, "reached": reached, "seconds": seconds}
        try:
            if problem is None:
                save_state(tensors, file, {"key": file.stem})
                if origin is not None:
                    record(file, run.cache, **origin)
        except ExpungeError as error:
            problem = str(error)
        if problem is not None:
            run.notes.append(problem)
        return images, reached


def _load(path: Path) -> dict[str, Tensor] | None:
    """The stored result of an attack; None if there is none, or if it is damaged or of another attack."""
    try:
        if not path.exists() or read_metadata(path).get("key") != path.stem:
            return None
        return dict(read_weights(path))
    except CheckpointError:
        return None


def _bytes(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def wrong_targets(labels: Tensor, classes: int, restarts: int, seed: int, *, sampler: str = "uniform") -> Tensor:
    """Random target classes.

    Args:
        labels: true classes (k,).
        classes: number of classes.
        restarts: targets per image.
        seed: of the draw.
        sampler: "uniform", over the wrong classes. "authors", over all classes, with the label itself replaced by the
            constant floor(classes / 2), as in the published code. "authors_first10", the same with 10 classes, as its
            first version did for every data set.

    Returns:
        (restarts, k).
    """
    generator = torch.Generator().manual_seed(derive(seed, "attack targets"))
    shape = (restarts, len(labels))
    known = labels.cpu()
    if sampler == "uniform":
        drawn = (known + 1 + torch.randint(classes - 1, shape, generator=generator)) % classes
    else:
        count = min(classes, 10) if sampler == "authors_first10" else classes
        drawn = torch.randint(count, shape, generator=generator)
        drawn = torch.where(drawn == known, torch.full_like(drawn, count // 2), drawn)
    return drawn.to(labels.device)
