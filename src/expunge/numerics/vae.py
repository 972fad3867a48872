"""The small variational autoencoder with which LAF models the distribution of representations.

Paper      Shen et al., ICLR 2024, arXiv:2404.00506

    encoder d -> 128 ReLU -> 32 ReLU -> mu, s (width l);  sigma = exp(s/2);  z = mu + sigma eps
    decoder l -> 32 ReLU -> 128 ReLU -> d, sigmoid (or linear)
    L_VAE = (1/B) sum_i ||v(e_i) - e_i||^2 + kl_weight (1/B) sum_i KL_i
    KL_i  = -1/2 sum_j ( log(sigma_ij^2 + 1e-8) + 1 - mu_ij^2 - sigma_ij^2 )

The sigmoid cannot reach a representation outside (0, 1), which is where most of the published loss comes from;
`decoder="linear"` can.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from expunge.core.run import Run
from expunge.core.seeds import derive
from expunge.numerics.representations import Views

Decoder = Literal["sigmoid", "linear", "clip"]


class VAE(nn.Module):
    """Variational autoencoder of representations.

    Args:
        width: width d of the representation.
        latent: width l of the latent variable.
        decoder: output function; "clip" is an ablation without a network, v(e) = clip(e, 0, 1).
    """

    def __init__(self, width: int, latent: int, decoder: Decoder = "sigmoid") -> None:
        super().__init__()
        self.kind = decoder
        self.encoder = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.mu = nn.Linear(32, latent)
        self.log_variance = nn.Linear(32, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 128), nn.ReLU())
        self.out = nn.Linear(128, width)

    def reconstruct(self, e: Tensor, noise: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """v(e) (B, d), mu (B, l), sigma (B, l); `noise` generates eps, None stands for eps = 0 (the mean)."""
        if self.kind == "clip":
            nothing = e.new_zeros(len(e), 1)
            return e.clamp(0, 1), nothing, nothing + 1
        hidden = self.encoder(e)
        mu, sigma = self.mu(hidden), torch.exp(self.log_variance(hidden) / 2)
        z = mu
        if noise is not None:
            z = mu + sigma * torch.randn(mu.shape, generator=noise, dtype=mu.dtype).to(mu.device)
        out = self.out(self.decoder(z))
        return (torch.sigmoid(out) if self.kind == "sigmoid" else out), mu, sigma

    def distance(self, e: Tensor, noise: torch.Generator | None) -> Tensor:
        """Squared reconstruction error ||v(e) - e||^2 per sample (B,), float32; gradients flow through both terms."""
        e = e.float()
        return (self.reconstruct(e, noise)[0] - e).square().sum(1)


def vae_loss(vae: VAE, e: Tensor, noise: torch.Generator, kl_weight: float) -> Tensor:
    """L_VAE of a batch of representations e (B, d); a scalar."""
    v, mu, sigma = vae.reconstruct(e, noise)
    error = (v - e).square().sum(1).mean()
    variance = sigma.square()
    divergence = -0.5 * (torch.log(variance + 1e-8) + 1 - mu.square() - variance).sum(1).mean()
    return error + kl_weight * divergence


def train_vae(
    views: Views,
    run: Run,
    *,
    name: str,
    latent: int,
    decoder: Decoder,
    epochs: int,
    batch_size: int,
    lr: float,
    kl_weight: float,
    patience: float | None = None,
) -> VAE:
    """Train a VAE with Adam on representations; its losses are stored in `run.details["vae"][name]`.

    It is too small to be distributed: every process trains it on all representations.

    Args:
        views: the matrix (n, d) of each epoch, which differs between epochs only if the data are augmented.
        run: device, seeds and progress.
        name: of the VAE, for its stream of random numbers.
        latent: width of the latent variable.
        decoder: output function, see `VAE`.
        epochs: passes over the matrix.
        batch_size: representations per step.
        lr: learning rate.
        kl_weight: weight of the KL term.
        patience: stop when an epoch lowers the loss by less than this share of it; None: never.

    Returns:
        The VAE, with frozen weights.
    """
    torch.manual_seed(run.seed_for("vae", name, "init"))
    features = views(1)
    vae = VAE(features.shape[1], latent, decoder).to(features.device)
    losses: list[float] = []
    run.details.setdefault("vae", {})[name] = losses
    if decoder != "clip":
        optimizer = torch.optim.Adam(vae.parameters(), lr=lr)
        noise = torch.Generator().manual_seed(derive(run.seed, "vae", name, "noise"))
        for epoch in range(1, epochs + 1):
            features = views(epoch) if epoch > 1 else features
            order = torch.Generator().manual_seed(derive(run.seed, "vae", name, "shuffle", epoch))
            total = torch.zeros((), device=features.device)
            for rows in torch.randperm(len(features), generator=order).split(batch_size):
                loss = vae_loss(vae, features[rows.to(features.device)], noise, kl_weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            losses.append(float(total) / len(features))
            run.report(f"{run.label}: VAE {name}", epoch, epochs, {"loss": losses[-1]})
            if patience is None or len(losses) < 2:
                continue
            if run.world.any(losses[-2] - losses[-1] < patience * abs(losses[-2])):
                break
    run.world.broadcast_parameters(vae)
    vae.zero_grad(set_to_none=True)
    return vae.requires_grad_(False)
