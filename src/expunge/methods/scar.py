"""SCAR: move each forget sample to the nearest other class, by Mahalanobis distance, and distil on other samples.

Paper      Bonato, Cotogni, Sabetta: Is Retain Set All You Need in Machine Unlearning?, ECCV 2024, arXiv:2404.12922
Reference  jbonato1/SCAR, src/Unlearning_methods.py
Notation   h(x) representation; T(h) = sign(h) |h|^beta, entrywise; unit vectors carry a hat

    per class c of the source S:   m_c = mean T(h),  C_c = cov T(h)
        C_c <- C_c + gamma1 V1 I + gamma2 V2 (1 - I)      V1, V2 mean diagonal and mean off-diagonal entry
        S_c  = C_c normalised to correlations
    D_c(x) = (T(h)^ - m_c^)^T pinv(S_c) (T(h)^ - m_c^);     k(x) = argmin over c != y of D_c(x) at the start
    min over w:  lambda1 mean over F of D_k(x)(x)  +  lambda2 mean over S of KL( softmax f(x; w_o) || softmax f(x; w) )
    stop     once the accuracy on F is below `until`

Source     "retain": the retained samples. "validation": held-out samples replace them, and no retained sample is read
           (the paper takes images of another data set); those of F's classes are excluded, unless F has all classes.
           Classes without samples in S are masked in the teacher's outputs, as the code does for a removed class
Cost       one pass over S and F for the statistics; epochs x passes over S, with F cycled
Limits     the default of `until` is meant for a whole class; for random samples set it to the accuracy on unseen ones
Deviates   T is made odd, so that negative representations have one; the code takes the square root of ReLU outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.errors import UsageError
from expunge.core.needs import Needs
from expunge.core.options import Field
from expunge.core.run import Run
from expunge.data.split import PerSample, Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, forward, paired_steps
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.methods.steps import endless
from expunge.models.anatomy import Anatomy, anatomy
from expunge.models.modes import training_mode
from expunge.training.inference import error_rate, predict
from expunge.training.loop import step
from expunge.training.recipe import make_optimizer


def powered(h: Tensor, beta: float) -> Tensor:
    """T(h), the odd power, entrywise. Its slope at 0 is infinite, so it is linear for |h| below 1e-6."""
    size = h.abs()
    return torch.where(size > 1e-6, h.sign() * size.clamp(min=1e-6) ** beta, h * 1e-6 ** (beta - 1))


def shrunk_correlation(covariance: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """The covariance (d, d), shrunk and normalised to a unit diagonal.

    >>> shrunk_correlation(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 1.0, 1.0)
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    diagonal = covariance.diagonal().mean()
    off = (covariance.sum() - covariance.diagonal().sum()) / max(covariance.numel() - len(covariance), 1)
    shrunk = covariance + gamma1 * diagonal * eye + gamma2 * off * (1 - eye)
    scale = shrunk.diagonal().clamp(min=1e-12).sqrt()
    return shrunk / (scale[:, None] * scale)


def other_classes(held_out: Split, forget: Split) -> Split:
    """The held-out samples of classes that are not in the forget set; all of them where it has every class."""
    named = forget.y.unique()
    is_other = ~torch.isin(held_out.y, named)
    return held_out if len(named) >= held_out.num_classes else held_out.take(held_out.index[is_other])


def distances(t: Tensor, means: Tensor, inverses: Tensor) -> Tensor:
    """D (B, K) of transformed representations t (B, d) to classes with means (K, d) and inverses (K, d, d)."""
    gap = F.normalize(t, dim=1)[:, None] - F.normalize(means, dim=1)
    return torch.einsum("bkd,kde,bke->bk", gap, inverses, gap)


@method("scar")
class SCAR(IterativeMethod):
    """Forget by the statistics of other classes, retain by distillation; `scar/held-out` reads no retained sample."""

    preset_source: ClassVar[str] = "`authors`: defaults of the reference's options; `held-out`: ours"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Defaults of the authors' options; 200 epochs are a limit, the accuracy on F ends the run.
        "authors": {"lr": 5e-4, "lambda1": 1.0, "lambda2": 5.0, "beta": 0.5, "gamma1": 3.0, "gamma2": 3.0,
                    "until": 0.01, "epochs": 200, "batch_size": 1024},
        "held-out": {"source": "validation"},
    }  # fmt: skip

    source: Literal["retain", "validation"] = Field("retain", description="data of the statistics and distillation")
    lambda1: float = Field(1.0, ge=0, description="weight of the distance on the forget set")
    lambda2: float = Field(5.0, ge=0, description="weight of the distillation on the source")
    beta: float = Field(0.5, gt=0, le=1, description="exponent of the transform of representations")
    gamma1: float = Field(3.0, ge=0, description="shrinkage of the diagonal")
    gamma2: float = Field(3.0, ge=0, description="shrinkage off the diagonal")
    until: float = Field(0.01, ge=0, le=1, description="stop below this accuracy on the forget set")
    epochs: int = Field(10, ge=0, description="maximal number of passes over the source")
    lr: float = Field(5e-4, gt=0, description="learning rate of Adam, constant")
    batch_size: int = Field(128, ge=1, description="samples per step, of the source and of the forget set")
    batchnorm: Literal["train", "frozen"] = Field("train", description="BatchNorm while unlearning")

    @property
    def needs(self) -> Needs:
        if self.source == "retain":
            return super().needs
        return Needs(forget="labels", validation="labels")

    def cost(self, sizes: Sizes) -> Work:
        # Held-out samples are counted like retained ones: their number is not known.
        work = paired_steps(sizes.retain, sizes.forget, self.batch_size, self.batch_size, self.epochs)
        work += forward(2 * (sizes.retain + sizes.forget)) + forward(sizes.forget, times=self.epochs)
        return work.at_most()

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        source = problem.retain if self.source == "retain" else other_classes(problem.validation, problem.forget)
        parts = anatomy(student, next(iter(problem.forget.batches(2, device=run.device))).x)
        with run.stage("statistics"):
            classes, means, inverses = self.statistics(parts, source, run)
            nearest = PerSample(problem.forget, self.targets(parts, problem.forget, run, classes, means, inverses))
            teacher = predict(problem.model, source, run.device)
            absent = torch.ones(problem.num_classes, dtype=torch.bool, device=teacher.device)
            absent[source.y.unique().to(teacher.device)] = False
            teacher[:, absent] = teacher.min()
            source_targets = PerSample(source, teacher.softmax(1))
        optimizer = make_optimizer("adam", student.parameters(), lr=self.lr)
        forget_batches = endless(problem.forget, self.batch_size, run, "forget")
        for epoch in run.epochs(student, self.epochs, state=[optimizer, forget_batches]):
            training_mode(student, self.batchnorm)
            seed = run.seed_for("source", "shuffle", epoch.number)
            for batch in source.batches(self.batch_size, shuffle=True, seed=seed, device=run.device):
                forgotten = next(forget_batches)
                with run.autocast():
                    log_p = student(batch.x).float().log_softmax(1)
                    h = parts.features(forgotten.x).float()
                rows = nearest[forgotten.index]
                forget_distance = distances(powered(h, self.beta), means, inverses).gather(1, rows[:, None]).mean()
                source_distance = F.kl_div(log_p, source_targets[batch.index], reduction="batchmean")
                step(self.lambda1 * forget_distance + self.lambda2 * source_distance, student, optimizer)
                epoch.add("forget_distance", forget_distance, len(forgotten))
                epoch.add("source_distance", source_distance, len(batch))
            accuracy = 1 - error_rate(predict(student, problem.forget, run.device), problem.forget.y)
            epoch.log(forget_accuracy=accuracy)
            if accuracy < self.until:
                run.status = "reached"
                epoch.stop = True
        return student

    def statistics(self, parts: Anatomy, source: Split, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Statistics of the source per class.

        Returns:
            Classes (K,) with at least two samples, their means (K, d) and inverse correlations (K, d, d).

        Raises:
            UsageError: if fewer than two classes have two samples.
        """
        t = powered(predict(parts.model, source, run.device, forward=parts.features), self.beta).double()
        labels = source.y.to(t.device)
        by_class = [(c, t[labels == c]) for c in labels.unique().tolist() if int((labels == c).sum()) > 1]
        if len(by_class) < 2:
            raise UsageError(
                f"scar needs two samples each of two classes, but {len(by_class)} classes of the {self.source} "
                "samples have two; pass more samples."
            )
        means = torch.stack([rows.mean(0) for _, rows in by_class])
        inverses = torch.stack(
            [
                torch.linalg.pinv(shrunk_correlation(torch.cov(rows.T), self.gamma1, self.gamma2), hermitian=True)
                for _, rows in by_class
            ]
        )
        classes = torch.tensor([c for c, _ in by_class], device=t.device)
        return classes, means.float(), inverses.float()

    def targets(
        self, parts: Anatomy, forget: Split, run: Run, classes: Tensor, means: Tensor, inverses: Tensor
    ) -> Tensor:
        """Row (len(F),) in `means` of the nearest class that is not the sample's own."""
        t = powered(predict(parts.model, forget, run.device, forward=parts.features), self.beta)
        chunks = [distances(rows, means, inverses) for rows in t.split(256)]
        d = torch.cat(chunks).masked_fill(forget.y.to(t.device)[:, None] == classes, torch.inf)
        return d.argmin(1)
