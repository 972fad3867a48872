"""Records to tables: tidy, and over seeds. Failed and unfinished cells are rows, never gaps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from expunge.api.record import CellRecord

TIME_METRICS = ("scale_up",)  # beside everything in seconds: differs between equal runs
STAGES = "stage_seconds"
SEED_COLUMNS = ["seed_data", "seed_train", "seed_unlearn", "seed_evaluate"]
COLUMNS = [
    *("cell", "scenario", "method", *SEED_COLUMNS, "state", "status", "effect", "error"),
    *("metric", "group", "value", "low", "high", "unit", "direction", "note"),
]
_NUMBERS = ["value", "low", "high"]


def frame(records: Sequence[CellRecord], *, time: bool = True) -> pd.DataFrame:
    """Tidy: one row per (cell, metric, group), in the study's order.

    state: "done", "failed" or "missing" (not finished yet). effect: a label of `api.effect`, empty where none was made.
    A cell without a result is one row with its error and no metric. time=False: without seconds, and without ratios of
    seconds. Seconds of a method's stages are rows of the metric `stage_seconds`, whose group is the stage.
    """
    rows = []
    for record in records:
        done = record.state == "done"
        keys = {
            "cell": record.id,
            "scenario": record.scenario["label"],
            "method": record.method["label"],
            **{f"seed_{name}": seed for name, seed in record.seeds.items()},
            "state": "missing" if record.status == "missing" else record.state,
            "status": record.status if done else "",
            "effect": record.effect["label"] if done and record.effect else "",
            "error": record.error,
        }
        scores = [s for s in record.scores if time or not (s["unit"] == "seconds" or s["metric"] in TIME_METRICS)]
        if time and done:
            scores += [
                {"metric": STAGES, "group": name, "value": seconds, "unit": "seconds", "direction": "lower"}
                for name, seconds in record.stages.items()
            ]
        rows += [{**keys, **score} for score in scores] or [keys]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype(dict.fromkeys(_NUMBERS, float))


def summary(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Per scenario, method and metric over seeds: mean, std (sample), n, and the 95 % t-interval low..high of the mean.

    failed, missing: seeds without a result. They are not part of n, and a method without any result keeps a row.
    Interval and deviation are NaN for a single seed.
    """
    from scipy.stats import t

    table = frame(records)
    keys = ["scenario", "method"]
    done = table[table["state"] == "done"]
    grouped = done.groupby([*keys, "metric", "group"], sort=False, dropna=False)["value"]
    result = grouped.agg(mean="mean", std="std", n="count").reset_index()
    half = t.ppf(0.975, (result["n"] - 1).clip(lower=1)) * result["std"] / result["n"] ** 0.5
    result = result.assign(low=result["mean"] - half, high=result["mean"] + half)
    pairs = list(dict.fromkeys((str(r.scenario["label"]), str(r.method["label"])) for r in records))
    empty = [pair for pair in pairs if pair not in set(zip(result["scenario"], result["method"], strict=True))]
    if empty:
        rows = pd.DataFrame([{"scenario": s, "method": m, "metric": "", "group": "", "n": 0} for s, m in empty])
        result = pd.concat([result, rows], ignore_index=True)
    for state in ("failed", "missing"):
        counts = table[table["state"] == state].groupby(keys).size().to_dict()
        result[state] = [int(counts.get(p, 0)) for p in zip(result["scenario"], result["method"], strict=True)]
    rank = {pair: at for at, pair in enumerate(pairs)}
    order = [rank[pair] for pair in zip(result["scenario"], result["method"], strict=True)]
    return result.iloc[pd.Series(order).argsort(kind="stable")].reset_index(drop=True)
