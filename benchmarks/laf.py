"""LAF against a straightforward implementation of the same arithmetic, and against the bare passes that remain.

Straightforward, as the authors wrote it: representations anew in every VAE epoch, with gradients on; the teacher anew
in every step; retained and forgotten samples in passes of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import expunge
from benchmarks.loops import data_path
from benchmarks.measure import Row, compare
from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.data.sources import load_data
from expunge.data.split import Split
from expunge.methods.base import make_method
from expunge.methods.laf import LAF, alignment, phi
from expunge.models.anatomy import Anatomy, anatomy
from expunge.models.build import build_model
from expunge.numerics.representations import OriginalRepresentations
from expunge.numerics.vae import VAE, train_vae, vae_loss

COUNT, FORGET, BATCH, LATENT = 4000, 600, 32, 8
VAE_EPOCHS, EPOCHS, SEED = 5, 2, 0


def run() -> Iterator[Row]:
    split = load_data(data_path("mnist"))
    retain, forget = split.take(split.index[FORGET:COUNT], "retain"), split.take(split.index[:FORGET], "forget")
    model = build_model("cnn", num_classes=10, input_shape=split.input_shape, seed=SEED)
    recipe = {"epochs": 1, "lr": 1e-3, "optimizer": "adam", "batch_size": BATCH}
    model = expunge.train(model, split.take(split.index[:COUNT]), recipe=recipe).model
    body = anatomy(copy.deepcopy(model).requires_grad_(False), split.inputs(size=2)[:2])
    what = f"cnn on mnist, {COUNT} samples, {FORGET} to forget"

    def slow_vaes() -> tuple[VAE, VAE]:
        return slow_vae(body, [retain, forget], "h"), slow_vae(body, [forget], "h_f")

    def our_vaes() -> tuple[VAE, VAE]:
        made = Run(seed=SEED)
        teacher = OriginalRepresentations(body, retain, forget, made, None)
        return our_vae(teacher, ["retain", "forget"], "h", made), our_vae(teacher, ["forget"], "h_f", made)

    ratio, a, b = compare(slow_vaes, our_vaes, repeats=3)
    yield Row("LAF: VAE stage, straightforward / ours", what, ratio, f"{a:.2f} s / {b:.2f} s", least=4)

    method = LAF(epochs=EPOCHS, vae_epochs=VAE_EPOCHS, latent=LATENT, batch_size=BATCH, skip_noise=False)

    def ours() -> nn.Module:
        return expunge.unlearn(model, forget=forget, retain=retain, method=method, seed=SEED, device="cpu").model

    def slow() -> nn.Module:
        return slow_laf(model, retain, forget, slow_vaes())

    pairs = zip(ours().parameters(), slow().parameters(), strict=True)
    apart = max(float((x.detach() - y.detach()).abs().max()) for x, y in pairs)
    ratio, a, b = compare(slow, ours, repeats=3)
    detail = f"{a:.2f} s / {b:.2f} s, weights apart {apart:.0e}"
    yield Row("LAF whole: straightforward / ours", what, ratio, detail, least=2)
    ratio, a, b = compare(ours, lambda: bare(model, retain, forget), repeats=3)
    yield Row("LAF whole / bare passes that remain", what, ratio, f"{a:.2f} s / {b:.2f} s", most=1.15)

    full = make_method("laf/class-cnn")
    assert isinstance(full, LAF)
    gone = split.index[:COUNT][split.y[:COUNT] == 0]
    stays = split.index[:COUNT][split.y[:COUNT] != 0]
    retain, forget = split.take(stays, "retain"), split.take(gone, "forget")

    def slow_full() -> nn.Module:
        h = slow_vae(body, [retain, forget], "h", full.vae_epochs)
        return slow_laf(model, retain, forget, (h, slow_vae(body, [forget], "h_f", full.vae_epochs)), full.epochs)

    def fast() -> nn.Module:
        return expunge.unlearn(
            model, forget=forget, retain=retain, method="laf/fast-class-cnn", seed=SEED, device="cpu"
        ).model

    ratio, a, b = compare(slow_full, fast, repeats=1, warm=False)
    what = f"cnn on mnist, {COUNT} samples, a class to forget, {full.vae_epochs} and {full.epochs} epochs"
    yield Row("LAF whole: straightforward / `laf/fast`", what, ratio, f"{a:.1f} s / {b:.1f} s", least=5)


def our_vae(teacher: OriginalRepresentations, which: list[str], name: str, made: Run) -> VAE:
    return train_vae(
        teacher.views(which, name, 0), made, name=name, latent=LATENT, decoder="sigmoid", epochs=VAE_EPOCHS,
        batch_size=BATCH, lr=1e-3, kl_weight=0.025,
    )  # fmt: skip


def slow_vae(body: Anatomy, splits: list[Split], name: str, epochs: int = VAE_EPOCHS) -> VAE:
    """The draws are those of `train_vae`, so that the results can be compared."""
    made = Run(seed=SEED)
    torch.manual_seed(made.seed_for("vae", name, "init"))
    x = torch.cat([split.inputs() for split in splits])
    body.model.requires_grad_(True)
    vae = VAE(body.features(x[:2]).shape[1], LATENT)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    noise = torch.Generator().manual_seed(derive(SEED, "vae", name, "noise"))
    for epoch in range(1, epochs + 1):
        order = torch.Generator().manual_seed(derive(SEED, "vae", name, "shuffle", epoch))
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            loss = vae_loss(vae, body.features(x[rows]), noise, 0.025)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    body.model.zero_grad(set_to_none=True)
    body.model.requires_grad_(False)
    return vae.requires_grad_(False)


def slow_laf(model: nn.Module, retain: Split, forget: Split, vaes: tuple[VAE, VAE], epochs: int = EPOCHS) -> nn.Module:
    made = Run(seed=SEED)
    student = copy.deepcopy(model).requires_grad_(True).eval()
    teacher = copy.deepcopy(model).requires_grad_(True).eval()
    sample = forget.inputs()[:2]
    body, frozen = anatomy(student, sample), anatomy(teacher, sample)
    ue, ra = (torch.optim.Adam(student.parameters(), lr=rate) for rate in (5e-5, 1e-4))
    noise = torch.Generator().manual_seed(derive(SEED, "latent"))
    for epoch in range(1, epochs + 1):
        for gone, kept in zip(*(batches(s, made, epoch) for s in (forget, retain)), strict=False):
            e_r, e_f = body.features(kept), body.features(gone)
            loss = phi(vaes[0].distance(e_r, noise)).sum() - phi(vaes[1].distance(e_f, noise)).sum()
            update(ue, loss)
            e_r, e_f = body.features(kept), body.features(gone)
            t_r, t_f = frozen.features(kept), frozen.features(gone)
            c_r, c_f = (1 - F.cosine_similarity(e, t, dim=1) for e, t in ((e_r, t_r), (e_f, t_f)))
            update(ra, alignment(c_r, c_f, 20.0))
    return student


def batches(split: Split, made: Run, epoch: int) -> Iterator[Tensor]:
    seed = made.seed_for(split.name, "shuffle", epoch, 0)
    return (batch.x for batch in split.batches(BATCH, shuffle=True, seed=seed))


def bare(model: nn.Module, retain: Split, forget: Split) -> None:
    """One look at all samples, the VAE steps on a matrix, and two fused passes with a backward pass per pair."""
    x_r, x_f = retain.inputs(), forget.inputs()
    body = anatomy(copy.deepcopy(model), x_f[:2])
    with torch.inference_mode():
        parts = [torch.cat([body.features(part) for part in x.split(512)]).clone() for x in (x_r, x_f)]
    vaes = []
    for matrix in (torch.cat(parts), parts[1]):
        vae = VAE(matrix.shape[1], LATENT)
        optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
        noise = torch.Generator().manual_seed(0)
        for _ in range(VAE_EPOCHS):
            for rows in torch.randperm(len(matrix)).split(BATCH):
                update(optimizer, vae_loss(vae, matrix[rows], noise, 0.025))
        vaes.append(vae.requires_grad_(False))
    student = body.model.requires_grad_(True).eval()
    ue, ra = (torch.optim.Adam(student.parameters(), lr=rate) for rate in (5e-5, 1e-4))
    noise = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x_r))
        for at in range(0, len(x_f), BATCH):
            gone = x_f[at : at + BATCH]
            both = torch.cat([x_r[order[at : at + BATCH]], gone])
            e = body.features(both)
            e_r, e_f = e[:BATCH], e[BATCH:]
            update(ue, phi(vaes[0].distance(e_r, noise)).sum() - phi(vaes[1].distance(e_f, noise)).sum())
            e = body.features(both)
            t = torch.cat([parts[0][order[at : at + BATCH]], parts[1][at : at + BATCH]])
            c = 1 - F.cosine_similarity(e, t, dim=1)
            update(ra, alignment(c[:BATCH], c[BATCH:], 20.0))


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
