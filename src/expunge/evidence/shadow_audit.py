"""The part of an audit that needs shadow models: per-sample attacks and distances between populations of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.core.errors import UsageError
from expunge.core.seeds import numpy_generator
from expunge.data.split import Split
from expunge.evidence.distances import forgetting_score, klom
from expunge.evidence.equivalence import Comparison
from expunge.evidence.persample import SampleAttack, attack_plain, attack_unlearned
from expunge.evidence.shadows import Design, ShadowScores, make_plan, score, shadow_scores
from expunge.evidence.targets import vulnerable
from expunge.evidence.unlearners import Unlearner
from expunge.training.recipe import Recipe

U_LIRA = "U-LiRA AUC"
FEWEST_TARGETS = 4  # members, and unseen targets, of a half that is attacked by itself


@dataclass(frozen=True, eq=False)
class ShadowFindings:
    """Results of the attacks with shadow models.

    Attributes:
        per_sample: "original: LiRA", "original: RMIA", "unlearned: U-LiRA" -> attack.
        scores: Of all shadow models.
        details: Forgetting score, per-sample epsilon and KLOM.
    """

    per_sample: Mapping[str, SampleAttack]
    scores: ShadowScores
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def attack(self) -> SampleAttack:
        """U-LiRA on the unlearned model."""
        return self.per_sample["unlearned: U-LiRA"]

    def comparison(self, delta: float) -> Comparison:
        """Test of the AUC of U-LiRA against 0.5, by the normal approximation of its interval; delta: the margin."""
        from scipy.stats import norm

        auc = self.attack.auc
        error = max((auc.high - auc.low) / (2 * float(norm.ppf(0.975))), 1e-9)
        d = auc.value - 0.5
        p_equivalence = max(float(norm.sf((d + delta) / error)), float(norm.sf((delta - d) / error)))
        half = float(norm.ppf(0.95)) * error
        return Comparison(
            U_LIRA,
            auc.value,
            0.5,
            error,
            delta,
            d,
            d - half,
            d + half,
            p_equivalence,
            2 * float(norm.sf(abs(d) / error)),
        )

    @property
    def side(self) -> str:
        """The label that a significant difference of that AUC supports."""
        return "not forgotten" if (self.attack.direction or 0.0) > 0 else "over-forgotten"


def shadow_audit(
    original: nn.Module,
    unlearned: nn.Module,
    splits: Mapping[str, Split],
    *,
    shadows: int,
    method: Unlearner,
    recipe: Recipe,
    design: Design = "matched",
    requests: int = 1,
    seed: int = 0,
    device: torch.device,
    jobs: int = 1,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShadowFindings:
    """Train shadow models with `recipe`, unlearn them with `method`, and attack both models with them.

    Args:
        original: The model before unlearning.
        unlearned: The model after unlearning.
        splits: forget, retain and test, with labels.
        shadows: Number of shadow models, even and >= 4.
        method: The unlearning method of the audited model, or a function (`unlearners`).
        recipe: The training recipe of the original.
        design: See `shadows.make_plan`, like `requests`.
        requests: Forget sets per shadow model, >= 1.
        seed: Of the plan and of all training, >= 0.
        device: Of all training.
        jobs: Processes that train in parallel, >= 1.
        cache: Folder of the scores; None: not kept.
        progress: Called with the number of finished and of all shadow models.

    Raises:
        UsageError: For a missing set or one without labels.
    """
    for name in ("forget", "retain", "test"):
        if name not in splits or not splits[name].has_labels:
            raise UsageError(f"shadow models need {name} data with labels; pass {name}=...")
    plan = make_plan(
        splits["forget"], splits["retain"], splits["test"], shadows, seed=seed, design=design, requests=requests
    )
    scores = shadow_scores(
        original, plan, recipe=recipe, method=method, seed=seed, device=str(device), jobs=jobs, cache=cache,
        progress=progress,
    )  # fmt: skip
    count = len(plan.targets)
    before, after = (score(model, plan, device) for model in (original, unlearned))
    attacks = {
        f"original: {attack.name}": attack for attack in attack_plain(before[:count], before[count:], scores, seed=seed)
    }
    attacks["unlearned: U-LiRA"] = attack_unlearned(after[:count], scores, seed=seed)
    half = vulnerable(scores)
    for part, chosen in (("vulnerable half", half), ("protected half", ~half)):
        if min(int(scores.plan.member[chosen].sum()), int((~scores.plan.member[chosen]).sum())) >= FEWEST_TARGETS:
            attacks[f"unlearned: U-LiRA, {part}"] = attack_unlearned(after[:count], scores, seed=seed, chosen=chosen)
    return ShadowFindings(attacks, scores, _populations(scores, seed))


def _populations(scores: ShadowScores, seed: int) -> dict[str, Any]:
    """Distances per forget sample between models that unlearned it and models that never saw it."""
    members = np.flatnonzero(scores.plan.member)
    unseen = scores.unseen & scores.first[:, None]
    unlearned_scores = [scores.unlearned[scores.forgot[:, t], t] for t in members]
    unseen_scores = [scores.unlearned[unseen[:, t], t] for t in members]
    usable = [i for i in range(len(members)) if min(len(unlearned_scores[i]), len(unseen_scores[i])) >= 2]
    if not usable:
        return {}
    unlearned_scores, unseen_scores = [unlearned_scores[i] for i in usable], [unseen_scores[i] for i in usable]
    challenge = forgetting_score(unlearned_scores, unseen_scores, numpy_generator(seed, "forgetting score"))
    finite = challenge.epsilon[np.isfinite(challenge.epsilon)]
    divergences = np.array(
        [float(klom(a[:, None], b[:, None])[0]) for a, b in zip(unlearned_scores, unseen_scores, strict=True)]
    )
    rng = numpy_generator(seed, "klom by chance")
    chance = []
    for a, b in zip(unlearned_scores, unseen_scores, strict=True):
        pooled = rng.permutation(np.concatenate([a, b]))
        chance.append(float(klom(pooled[: len(a), None], pooled[len(a) :, None])[0]))
    return {
        "models": [int(np.median([len(a) for a in unlearned_scores])), int(np.median([len(b) for b in unseen_scores]))],
        "forgetting_score": {"score": challenge.score, "by chance": challenge.chance},
        "sample_epsilon": {
            "median": float(np.median(finite)) if len(finite) else math.inf,
            "without error": float(np.isinf(challenge.epsilon).mean()),
        },
        "klom": {"mean": float(divergences.mean()), "by chance": float(np.mean(chance))},
    }
