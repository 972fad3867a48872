"""LAF: label-free forgetting by modelling the distribution of representations; LAF+R repairs with a few labels.

Paper      Shen, Zhang, Zhao, Bialkowski, Chen, Xu, Label-Agnostic Forgetting, ICLR 2024, arXiv:2404.00506
Notation   e = g^e(x; w) the representation (B, d), t = g^e(x; w_o) the original model's; h, h_f: VAEs trained on the
           representations of all data and of the forget set; d_v(x) = ||v(e) - e||^2

    L_UE = sum over D_r batch of phi(d_h(x)) - sum over D_f batch of phi(d_hf(x)),     phi(d) = exp(d / (d + 1))
    L_RA = sum over D_r batch of c(x) - B_r logsumexp over D_f batch of c(u)/tau,      c(x) = 1 - cos(e, t)

Per pair of batches one Adam step on L_UE, then, with new representations, one on L_RA. The head gets no gradient
and stays bit-identical. BatchNorm stays in eval mode. The pairs end with the shorter of the two shuffled splits.
LAF+R afterwards trains the head alone, by cross-entropy, on `labels` labelled retained samples: exactly those.

Cost       representations of all data once; VAE epochs on that matrix; two passes over |D_f| + |D_f| samples an epoch
Deviates   from the authors' code, same results: representations of the frozen model are computed once and looked up by
           sample; retained and forgotten samples share a forward pass if BatchNorm is frozen
Limits     at real reconstruction errors phi is almost flat; on random forgetting it hardly forgets (see results)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.core.needs import Needs
from expunge.core.options import Field, options
from expunge.core.resume import Generator, Stateful, Values
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.augment import make_augment
from expunge.data.split import Batch, PerSample, Split
from expunge.methods.base import IterativeMethod, method
from expunge.methods.cost import Work, batches, forward
from expunge.methods.problem import Problem
from expunge.methods.scaling import Sizes
from expunge.models.anatomy import anatomy
from expunge.models.modes import training_mode
from expunge.numerics.representations import OriginalRepresentations, features
from expunge.numerics.vae import VAE, train_vae
from expunge.training.ddp import Passes

_TASKS: dict[str, dict[str, Any]] = {
    "random-cnn": {"latent": 8, "epochs": 20, "lr_ue": 5e-5, "lr_ra": 1e-4, "tau": 5.0},
    "random-resnet": {"latent": 16, "epochs": 40, "lr_ue": 1e-5, "lr_ra": 4e-5, "tau": 20.0},
    "class-cnn": {"latent": 8, "epochs": 20, "lr_ue": 5e-5, "lr_ra": 1e-4, "tau": 20.0},
    "class-resnet": {"latent": 16, "epochs": 40, "lr_ue": 1e-5, "lr_ra": 5e-5, "tau": 20.0},
    "noise-cnn": {"latent": 8, "epochs": 20, "lr_ue": 5e-5, "lr_ra": 1e-4, "tau": 20.0},
    "noise-resnet": {"latent": 16, "epochs": 40, "lr_ue": 1e-5, "lr_ra": 4e-5, "tau": 5.0},
}
# Every switch on the authors' side: the defaults are, except for the first step's noise and, with ResNets, the images.
_AUTHORS: dict[str, dict[str, Any]] = {
    f"authors-{task}": {**values, "skip_noise": False, **({"augment": "rrc-flip-224"} if "resnet" in task else {})}
    for task, values in _TASKS.items()
}
# Four times the batch size at four times the rates, half the retained samples per forgotten one, and early stopping.
# At twice the rates, the square-root rule often advised for Adam, a third of a class was not forgotten; with a quarter
# of the retained samples, or a patience of 2, some seeds stopped too early.
_QUICK: dict[str, Any] = {
    "batch_size": 128, "retain_share": 0.5, "ue_patience": 3,
    "vae_batch_size": 128, "vae_lr": 2e-3, "vae_patience": 0.02,
}  # fmt: skip
_FAST: dict[str, dict[str, Any]] = {
    "fast": {"lr_ue": 2e-4, "lr_ra": 4e-4, **_QUICK},
    **{
        f"fast-{task}": {**values, "lr_ue": 4 * values["lr_ue"], "lr_ra": 4 * values["lr_ra"], **_QUICK}
        for task, values in _TASKS.items()
    },
}

NOISE = 1e-6  # c = 1 - cos below this is rounding: equal networks give up to 2e-7 in float32


def phi(d: Tensor) -> Tensor:
    """exp(d / (d + 1)), elementwise, in [1, e) for d >= 0. In float32: lower precision rounds the ratio to 1.

    >>> phi(torch.tensor([0.0, 1.0, 3.0]))
    tensor([1.0000, 1.6487, 2.1170])
    """
    return torch.exp(d / (d + 1))


def alignment(c_retain: Tensor, c_forget: Tensor, tau: float, tau_both: bool = False) -> Tensor:
    """L_RA from the cosine distances c of the retained (B_r,) and the forgotten samples (B_u,); a scalar.

    >>> round(float(alignment(torch.zeros(32), torch.zeros(32), tau=20.0)), 4)
    -110.9035
    """
    scale = tau if tau_both else 1.0
    return (c_retain / scale).sum() - len(c_retain) * torch.logsumexp(c_forget / tau, dim=0)


@options
class LAFBase(IterativeMethod):
    """Options and algorithm of LAF and LAF+R."""

    parallel: ClassVar[bool] = True
    preset_source: ClassVar[str] = (
        "the settings of the authors' code per task and architecture, and cheaper ones of ours (`fast`)"
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_TASKS, **_AUTHORS, **_FAST, "authors": {"skip_noise": False}
    }  # fmt: skip

    epochs: int = Field(20, ge=0, description="passes over the forget set")
    lr_ue: float = Field(5e-5, gt=0, description="Adam's rate for L_UE")
    lr_ra: float = Field(1e-4, gt=0, description="Adam's rate for L_RA")
    tau: float = Field(20.0, gt=0, description="temperature of the forget term of L_RA")
    batch_size: int = Field(32, ge=1, description="samples of each split per step")
    retain_share: float = Field(
        1.0, gt=0, le=1, description="retained samples per forgotten one in a step; L_UE weighs them by its inverse"
    )
    latent: int = Field(8, ge=1, description="width l of the VAEs' latent variable")
    vae_epochs: int = Field(10, ge=0, description="epochs of both VAEs")
    vae_lr: float = Field(1e-3, gt=0, description="Adam's rate for the VAEs")
    vae_batch_size: int = Field(32, ge=1, description="representations per VAE step")
    vae_patience: float | None = Field(
        None, gt=0, description="stop a VAE whose loss falls by less than this share in an epoch; none: never"
    )
    kl_weight: float = Field(0.025, ge=0, description="weight of the KL term of the VAE loss")
    h_data: Literal["all", "retain"] = Field("all", description="what h is trained on")
    decoder: Literal["sigmoid", "linear", "clip"] = Field("sigmoid", description="VAE output; clip: no VAE (ablation)")
    latent_mode: Literal["sampled", "mean"] = Field("sampled", description="z while unlearning")
    ue_form: Literal["phi", "mse"] = Field("phi", description="L_UE on phi(d), or on d itself")
    tau_both: bool = Field(False, description="divide the retain term of L_RA by tau too")
    schedule: Literal["alternate", "two_stage", "joint"] = Field(
        "alternate", description="per batch in turn; all L_UE epochs, then all L_RA; or one step on the sum at lr_ra"
    )
    pairing: Literal["zip", "cycle"] = Field("zip", description="end with the shorter split, or cycle the forget set")
    drop_short: bool = Field(False, description="leave out the short last batch of the forget set")
    ue_patience: int | None = Field(
        None, ge=1, description="epochs without a lower mean L_UE after which to stop; none: never"
    )
    use_ue: bool = Field(True, description="use L_UE (ablation)")
    use_ra: bool = Field(True, description="use L_RA (ablation)")
    skip_noise: bool = Field(True, description="skip L_RA steps until weights moved: the gradient is rounding error")
    batchnorm: Literal["frozen", "train"] = Field("frozen", description="BatchNorm while unlearning")
    extractor: str | None = Field(None, description="module whose output is the representation; none: automatic")
    augment: str = Field("none", description="augmentation of every batch, see `expunge list`; LAF's ResNets used one")
    vae_views: int = Field(0, ge=0, description="augmented views stored for the VAEs; 0: a new one every epoch")

    def cost(self, sizes: Sizes) -> Work:
        everything = sizes.retain + sizes.forget
        on_h = everything if self.h_data == "all" else sizes.retain
        vae = self.vae_epochs * (batches(on_h, self.vae_batch_size) + batches(sizes.forget, self.vae_batch_size))
        beside = max(1, round(self.retain_share * self.batch_size))  # retained samples per step
        pairs = batches(sizes.retain, beside)
        if self.pairing == "zip":
            pairs = min(pairs, batches(sizes.forget, self.batch_size))
        rounds = 1 if self.schedule == "joint" else int(self.use_ue) + int(self.use_ra)
        retained = min(sizes.retain, pairs * beside)
        forgotten = sizes.forget if self.pairing == "zip" else pairs * self.batch_size
        passed = retained + min(forgotten, pairs * self.batch_size)
        count = self.epochs * pairs * rounds
        work = Work(step_samples=self.epochs * rounds * passed, step_batches=count, small=vae + 2 * count)
        if self.augment == "none":
            work += forward(everything)
        else:  # what the frozen model answers depends on the view: of each step's batch, and of each epoch of the VAEs
            views = min(self.vae_epochs, self.vae_views or self.vae_epochs)
            work += forward(work.step_samples) + forward(on_h + sizes.forget, times=views)
        return work.at_most() if self.vae_patience is not None or self.ue_patience is not None else work

    def unlearn(self, problem: Problem, run: Run) -> nn.Module:
        student = problem.student()
        sample = next(iter(problem.forget.batches(2, device=run.device))).x
        with run.stage("features"):
            body = anatomy(problem.model, sample, extractor=self.extractor)
            teacher = OriginalRepresentations(body, problem.retain, problem.forget, run, make_augment(self.augment))
        with run.stage("vae"):
            h = self._vae("h", ["retain", "forget"] if self.h_data == "all" else ["retain"], teacher, run)
            h_forget = self._vae("h_f", ["forget"], teacher, run)
        with run.stage("extractor"):
            self.on_extractor(student, problem, run, (h, h_forget), teacher, sample)
        with run.stage("repair"):
            self.repair(student, problem, run, sample)
        return student.eval()

    def repair(self, student: nn.Module, problem: Problem, run: Run, sample: Tensor) -> None:
        """Supervised repair of the head, in place: nothing in LAF, see `LAFRepair`."""

    def _vae(self, name: str, which: list[str], teacher: OriginalRepresentations, run: Run) -> VAE:
        return train_vae(
            teacher.views(which, name, self.vae_views),
            run,
            name=name,
            latent=self.latent,
            decoder=self.decoder,
            epochs=self.vae_epochs,
            batch_size=self.vae_batch_size,
            lr=self.vae_lr,
            kl_weight=self.kl_weight,
            patience=self.vae_patience,
        )

    def on_extractor(
        self,
        student: nn.Module,
        problem: Problem,
        run: Run,
        vaes: tuple[VAE, VAE],
        teacher: OriginalRepresentations,
        sample: Tensor,
    ) -> None:
        """Alternate steps on L_UE and L_RA, which change the student in place.

        Args:
            student: the model that is trained.
            problem: with forget and retain set.
            run: history and seeds.
            vaes: (h, h_f).
            teacher: representations of the original model.
            sample: a batch, by which the extractor is identified.
        """
        passes = Passes(student, run, anatomy(student, sample, extractor=self.extractor).features)
        ue = torch.optim.Adam(student.parameters(), lr=self.lr_ue)
        ra = torch.optim.Adam(student.parameters(), lr=self.lr_ra)
        noise = torch.Generator().manual_seed(derive(run.seed, "latent")) if self.latent_mode == "sampled" else None
        seen = Values(moved=False, lowest=float("inf"), waited=0)
        carried: list[Stateful] = [ue, ra, seen, *([] if noise is None else [Generator(noise)])]
        rounds = self.epochs * (2 if self.schedule == "two_stage" else 1)
        for epoch in run.epochs(student, rounds, state=carried):
            student.eval() if self.batchnorm == "frozen" else training_mode(student)
            do_ue = self.use_ue and not (self.schedule == "two_stage" and epoch.number > self.epochs)
            do_ra = self.use_ra and not (self.schedule == "two_stage" and epoch.number <= self.epochs)
            for forgotten, retained in self._pairs(problem, run, epoch.number):
                targets = teacher.of(retained, forgotten)
                if self.schedule == "joint":
                    e_r, e_f = self._both(passes, retained, forgotten, run)
                    ue_loss = self._ue(e_r, e_f, vaes, noise)
                    ra_loss, _ = self._ra(e_r, e_f, targets)
                    total = (ue_loss if do_ue else 0 * ue_loss) + (ra_loss if do_ra else 0 * ra_loss)
                    _adam_step(ra, total)
                    epoch.add("ue", ue_loss)
                    epoch.add("ra", ra_loss)
                    continue
                if do_ue:
                    e_r, e_f = self._both(passes, retained, forgotten, run)
                    ue_loss = self._ue(e_r, e_f, vaes, noise)
                    _adam_step(ue, ue_loss)
                    epoch.add("ue", ue_loss)
                if do_ra:
                    e_r, e_f = self._both(passes, retained, forgotten, run)
                    ra_loss, farthest = self._ra(e_r, e_f, targets)
                    # Once something has moved it stays so: no further look at the device.
                    seen.moved = seen.moved or not self.skip_noise or run.world.any(float(farthest) > NOISE)
                    if seen.moved:
                        _adam_step(ra, ra_loss)
                    epoch.add("ra", ra_loss)
            if self.ue_patience is not None and do_ue:
                mean_loss = epoch.mean("ue")
                seen.waited = 0 if mean_loss < seen.lowest else seen.waited + 1
                seen.lowest = min(mean_loss, seen.lowest)
                epoch.stop = seen.waited >= self.ue_patience and self.schedule != "two_stage"

    def _pairs(self, problem: Problem, run: Run, epoch: int) -> Iterator[tuple[Batch, Batch]]:
        """Pairs (forget batch, retain batch): ceil(|D_f| / batch size) of them if D_f is the smaller set."""
        augment = make_augment(self.augment)

        def shuffled(split: Split, turn: int = 0) -> Iterator[Batch]:
            seed = run.seed_for(split.name, "shuffle", epoch, turn)
            share = 1.0 if split.name == "forget" else self.retain_share
            return split.batches(
                max(1, round(share * self.batch_size)),
                shuffle=True,
                seed=seed,
                augment=augment,
                device=run.device,
                world=run.world,
                drop_last=self.drop_short and split.name == "forget" and len(split) >= self.batch_size,
            )

        def endless(split: Split) -> Iterator[Batch]:
            turn = 0
            while True:
                yield from shuffled(split, turn)
                turn += 1

        forget = shuffled(problem.forget) if self.pairing == "zip" else endless(problem.forget)
        return zip(forget, shuffled(problem.retain), strict=False)

    def _both(self, passes: Passes, retained: Batch, forgotten: Batch, run: Run) -> tuple[Tensor, Tensor]:
        """Representations (B_r, d), (B_u, d), float32; one joint pass if BatchNorm is frozen."""
        with run.autocast():
            e_r, e_f = (
                passes.joint(retained, forgotten)
                if self.batchnorm == "frozen"
                else (passes(retained), passes(forgotten))
            )
        return e_r.float(), e_f.float()

    def _ue(self, e_r: Tensor, e_f: Tensor, vaes: tuple[VAE, VAE], noise: torch.Generator | None) -> Tensor:
        retain_term, forget_term = vaes[0].distance(e_r, noise), vaes[1].distance(e_f, noise)
        if self.ue_form == "phi":
            retain_term, forget_term = phi(retain_term), phi(forget_term)
        return retain_term.sum() / self.retain_share - forget_term.sum()

    def _ra(self, e_r: Tensor, e_f: Tensor, targets: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """L_RA, and the largest cosine distance c of the batch."""
        c_r = 1 - F.cosine_similarity(e_r, targets[0], dim=1)
        c_f = 1 - F.cosine_similarity(e_f, targets[1], dim=1)
        return alignment(c_r, c_f, self.tau, self.tau_both), torch.maximum(c_r.max(), c_f.max()).detach()


@method("laf")
class LAF(LAFBase):
    """Label-agnostic forgetting: reads the inputs of forget and retain set, and no label."""


@method("laf+r")
class LAFRepair(LAFBase):
    """LAF, then supervised repair of the head on a budget of labelled retained samples."""

    labels: float = Field(0.1, gt=0, description="retained samples with labels: share below 1, or a number")
    repair_epochs: int = Field(1, ge=0, description="passes over the labelled samples")
    repair_lr: float = Field(1e-4, gt=0, description="Adam's rate for the head")

    def cost(self, sizes: Sizes) -> Work:
        labelled = int(self.labels * sizes.retain) if self.labels < 1 else int(self.labels)
        repair = Work(small=self.repair_epochs * batches(labelled, self.batch_size))
        return super().cost(sizes) + forward(labelled) + repair

    @property
    def needs(self) -> Needs:
        return replace(super().needs, labelled=self.labels)

    def repair(self, student: nn.Module, problem: Problem, run: Run, sample: Tensor) -> None:
        """Train the head by cross-entropy, in place; the extractor is frozen, its representations are computed once."""
        if self.repair_epochs == 0:
            return
        body = anatomy(student, sample)  # what enters the head, wherever the representation was taken
        labelled = problem.labelled
        e = PerSample(labelled, features(body, labelled, run))
        y = labelled.y.to(run.device)
        head = body.head_module
        optimizer = torch.optim.Adam(head.parameters(), lr=self.repair_lr)
        losses = []
        for epoch in range(1, self.repair_epochs + 1):
            total = 0.0
            seed = run.seed_for("repair", "shuffle", epoch)
            order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed))
            for rows in order.split(self.batch_size):
                loss = F.cross_entropy(body.classify(e[rows]).float(), y[rows.to(run.device)])
                _adam_step(optimizer, loss)
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(labelled))
        run.details["repair"] = {"labels": len(labelled), "loss": losses}


def _adam_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
