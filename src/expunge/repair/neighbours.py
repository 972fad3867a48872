"""Who else was hurt: retained samples nearest to the repaired ones, against as many others.

Rule       for every suspect the k retained samples nearest to it, by Euclidean distance between the representations
           that enter the head of the model before the repair; together they are the neighbours (at most half of the
           retained samples: the nearest). Distances are those of the model that was repaired, since it generalises,
           and errs, along them.
Controls   as many retained samples that are no neighbours, drawn at random from all of them; and drawn with the
           neighbours' labels, so that an effect on whole classes does not pass for one on neighbours
Numbers    share of samples that turned from right to wrong among those that were right, its difference with Newcombe's
           95 % interval and Fisher's exact test; mean change of the probability of the own label, its difference with
           Welch's 95 % interval and test
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import fisher_exact, ttest_ind
from torch import Tensor, nn

from expunge.core.seeds import torch_generator
from expunge.data.split import Split
from expunge.metrics.base import ORIGINAL, REFERENCE, Evaluation
from expunge.metrics.features import points_of, with_features
from expunge.models.modes import evaluation_mode
from expunge.numerics.statistics import wilson
from expunge.repair.effects import REPAIRED, confidence

BLOCK = 4096  # retained samples whose features are held at a time
CONTROLS = ("random", "same classes")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Retained samples near the suspects, and controls.

    Attributes:
        rows: long (m,), neighbours as rows of the retained split, nearest first.
        nearest: long (m,), row of the suspect that each is nearest to.
        distance: float64 (m,).
        controls: name -> rows of the retained split.
    """

    rows: Tensor
    nearest: Tensor
    distance: Tensor
    controls: dict[str, Tensor]


def find_neighbours(
    model: nn.Module, suspects: Split, retain: Split, *, k: int, seed: int, device: torch.device | str
) -> Neighbours:
    """Neighbours and controls, the same for the same seed. model: before the repair."""
    distance, pool = _k_nearest(model, suspects, retain, min(k, len(retain)), torch.device(device))
    best = torch.full((len(retain),), float("inf"), dtype=torch.float64)
    owner = torch.zeros(len(retain), dtype=torch.long)
    for number in range(len(suspects)):
        closer = distance[number] < best[pool[number]]
        best[pool[number][closer]] = distance[number][closer]
        owner[pool[number][closer]] = number
    nearest = best.argsort(stable=True)[: min(int(best.isfinite().sum()), max(1, len(retain) // 2))]
    controls = _controls(retain, nearest, torch_generator(seed, "controls"))
    return Neighbours(nearest, owner[nearest], best[nearest], controls)


def _k_nearest(model: nn.Module, suspects: Split, retain: Split, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distances (n, k) and rows of `retain` (n, k), ascending. Only k per suspect are kept at a time."""
    home = next((p.device for p in model.parameters()), device)
    try:
        points = points_of(model.to(device), next(iter(suspects.batches(2, device=device))).x)
        with evaluation_mode(model), torch.inference_mode():
            centres = with_features(model, suspects, points, device)[1].double()
            best = torch.full((len(suspects), 0), 0.0, dtype=torch.float64)
            rows = torch.zeros((len(suspects), 0), dtype=torch.long)
            for start in range(0, len(retain), BLOCK):
                block = retain.take(retain.index[start : start + BLOCK])
                features = with_features(model, block, points, device)[1].double()
                apart = torch.cdist(centres, features, compute_mode="use_mm_for_euclid_dist")
                block_rows = torch.arange(start, start + len(block)).expand_as(apart)
                both, places = torch.cat([best, apart], 1), torch.cat([rows, block_rows], 1)
                best, order = both.topk(min(k, both.shape[1]), dim=1, largest=False)
                rows = places.gather(1, order)
    finally:
        model.to(home)
    return best.clone(), rows.clone()


def _controls(retain: Split, neighbours: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    free = torch.ones(len(retain), dtype=torch.bool)
    free[neighbours] = False
    candidates = free.nonzero()[:, 0]
    candidates = candidates[torch.randperm(len(candidates), generator=generator)]
    same = []
    for label in retain.y[neighbours].unique().tolist():
        count = int((retain.y[neighbours] == label).sum())
        same.append(candidates[retain.y[candidates] == label][:count])
    return {"random": candidates[: len(neighbours)].sort().values, "same classes": torch.cat(same).sort().values}


def compare(evaluation: Evaluation, neighbours: Neighbours) -> list[dict[str, Any]]:
    """Neighbours against each control, for the repaired model and, if there is one, the retrained one.

    Controls with fewer than two samples are left out.
    """
    labels = evaluation.labels("retain")
    before_right = evaluation.correct(ORIGINAL, "retain")
    before = confidence(evaluation.logits(ORIGINAL, "retain"), labels)
    rows = []
    for model in (name for name in (REPAIRED, REFERENCE) if name in evaluation.models):
        lost = before_right & ~evaluation.correct(model, "retain")
        change = confidence(evaluation.logits(model, "retain"), labels) - before
        for control, others in neighbours.controls.items():
            if min(len(others), len(neighbours.rows)) < 2:
                continue
            groups = [neighbours.rows, others]
            counts = [(int(lost[rows].sum()), int(before_right[rows].sum())) for rows in groups]
            means = [float(change[rows].mean()) for rows in groups]
            rows.append(
                {
                    "model": model,
                    "control": control,
                    "samples": [len(rows) for rows in groups],
                    "lost": [count for count, _ in counts],
                    "right_before": [of for _, of in counts],
                    "lost_difference": newcombe(*counts[0], *counts[1]),
                    "change": means,
                    "change_difference": welch(change[groups[0]].numpy(), change[groups[1]].numpy()),
                }
            )
    return rows


def newcombe(hits: int, total: int, other_hits: int, other_total: int) -> dict[str, float] | None:
    """Difference of two proportions, with Newcombe's hybrid score interval (95 %) and Fisher's exact p.

    None where a group is empty. Source: Newcombe, Statistics in Medicine 17 (1998), method 10.
    """
    if not total or not other_total:
        return None
    first, second = hits / total, other_hits / other_total
    (low1, high1), (low2, high2) = wilson(hits, total), wilson(other_hits, other_total)
    table = [[hits, total - hits], [other_hits, other_total - other_hits]]
    return {
        "value": first - second,
        "low": first - second - float(np.hypot(first - low1, high2 - second)),
        "high": first - second + float(np.hypot(high1 - first, second - low2)),
        "p": float(fisher_exact(table).pvalue),
    }


def welch(values: np.ndarray, controls: np.ndarray) -> dict[str, float]:
    """Difference of two means with Welch's 95 % interval and p; where nothing varies, the interval is the value."""
    value = float(values.mean() - controls.mean())
    if max(values.std(), controls.std()) < 1e-12:
        return {"value": value, "low": value, "high": value, "p": 1.0 if abs(value) < 1e-12 else 0.0}
    test = ttest_ind(values, controls, equal_var=False)
    interval = test.confidence_interval(0.95)
    return {"value": value, "low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}


def table(evaluation: Evaluation, neighbours: Neighbours, suspect_ids: np.ndarray) -> pd.DataFrame:
    """One row per neighbour, those that turned wrong first, then by lost confidence; then the controls.

    Columns: group, id, position, label, nearest_suspect, distance (empty for controls), said_before, said_after,
    confidence_before, confidence_after, change, hurt (right before, wrong after).
    """
    retain = evaluation.splits["retain"]
    labels = evaluation.labels("retain")
    predictions = {model: evaluation.logits(model, "retain").argmax(1) for model in (ORIGINAL, REPAIRED)}
    sure = {model: confidence(evaluation.logits(model, "retain"), labels) for model in (ORIGINAL, REPAIRED)}
    parts = []
    for group, rows in (("neighbour", neighbours.rows), *neighbours.controls.items()):
        is_neighbour = group == "neighbour"
        frame = pd.DataFrame(
            {
                "group": group,
                "id": retain.ids[rows.numpy()],
                "position": retain.index[rows].numpy(),
                "label": labels[rows].numpy(),
                "nearest_suspect": suspect_ids[neighbours.nearest.numpy()] if is_neighbour else "",
                "distance": neighbours.distance.numpy() if is_neighbour else np.nan,
                "said_before": predictions[ORIGINAL][rows].numpy(),
                "said_after": predictions[REPAIRED][rows].numpy(),
                "confidence_before": sure[ORIGINAL][rows].numpy(),
                "confidence_after": sure[REPAIRED][rows].numpy(),
                "change": (sure[REPAIRED] - sure[ORIGINAL])[rows].numpy(),
            }
        )
        right_before, right_after = (frame[name] == frame["label"] for name in ("said_before", "said_after"))
        frame["hurt"] = right_before & ~right_after
        parts.append(frame.sort_values(["hurt", "change", "position"], ascending=[False, True, True]))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)
