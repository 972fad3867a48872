"""Unlearned models that a study keeps, so that a metric that is added later is measured on them.

`models/<id>/` of the study's folder holds what `Result.save` writes (without initial weights, which the study can make
again) and `scores.json`: score id -> what was measured. The id is that of the unlearned model (`Cell.model`), which
does not contain the metrics. A folder that is damaged, or whose weights are not those of its record, is not believed:
the method runs again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from expunge.api.result import Result
from expunge.api.saved import load_result, read_mapping
from expunge.bench.recipe import Keep
from expunge.core.errors import CheckpointError, ExpungeError
from expunge.core.files import write_text

FOLDER, SCORES, BEST = "models", "scores.json", "best.json"


@dataclass(frozen=True)
class KeptModels:
    """The models of one study.

    Attributes:
        study: The study's folder; None: nothing is kept, and nothing is looked up.
        keep: "all" models, the "best" of each scenario and seeds, or "none" from now on; what is there is used anyway.
        most: Bytes that all of them may take together; a model beyond that is not kept.
    """

    study: Path | None
    keep: Keep = "none"
    most: float = 0.0

    def load(self, model: str, fresh: Callable[[], nn.Module]) -> Result | None:
        """A kept model; None where there is none that can be believed.

        Args:
            model: Its id.
            fresh: Makes a network of its architecture, which is filled with the weights.
        """
        place = self._place(model)
        if place is None or not place.is_dir():
            return None
        try:
            result = load_result(place, model=fresh().eval())
            read_mapping(place / SCORES)
        except ExpungeError:
            shutil.rmtree(place, ignore_errors=True)
            return None
        return result

    def scores(self, model: str) -> dict[str, Any]:
        """Score id -> JSON-ready value of a kept model; empty where it is not kept."""
        place = self._place(model)
        return {} if place is None or not (place / SCORES).is_file() else read_mapping(place / SCORES)

    def store(
        self, model: str, result: Result, scores: Mapping[str, Any], *, group: str, gap: Callable[[], float]
    ) -> str:
        """Keep a model with its scores, or the scores alone where it is kept already.

        Args:
            model: Its id.
            result: What unlearning returned.
            scores: Score id -> JSON-ready value, all that are known.
            group: The scenario and the seeds, within which "best" keeps one model.
            gap: How far the model is from the retrained one; smaller is better.

        Returns:
            Why it is not kept, in one sentence; empty where it is, or was not to be.
        """
        place = self._place(model)
        if place is None:
            return ""
        try:
            if place.is_dir():
                write_text(place / SCORES, json.dumps(scores))
            elif self.keep != "none":
                place.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(place.parent / ".lock"):
                    return self._add(place, result, scores, group, gap)
        except (ExpungeError, OSError) as error:
            shutil.rmtree(place, ignore_errors=True)
            return f"the unlearned model is not kept ({str(error).rstrip('.')})."
        return ""

    def _add(self, place: Path, result: Result, scores: Mapping[str, Any], group: str, gap: Callable[[], float]) -> str:
        best, before = place.parent / BEST, {}
        if self.keep == "best":
            with suppress(CheckpointError):
                before = read_mapping(best) if best.is_file() else {}
            entry = before.get(group)
            if entry is not None and (place.parent / entry[0]).is_dir() and entry[1] <= gap():
                return ""
            if entry is not None:
                shutil.rmtree(place.parent / entry[0], ignore_errors=True)
        size = sum(value.nbytes for value in result.model.state_dict().values())
        taken = sum(path.stat().st_size for path in place.parent.rglob("*") if path.is_file())
        if taken + size > self.most:
            return f"the unlearned model is not kept: {(taken + size) / 1e9:.2g} GB would exceed `keep_gb`; raise it."
        part = place.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        replace(result, initial=None).save(part, parents=False)
        write_text(part / SCORES, json.dumps(scores))
        part.rename(place)
        if self.keep == "best":
            write_text(best, json.dumps({**before, group: [place.name, gap()]}))
        return ""

    def drop(self, models: Iterable[str]) -> None:
        """Delete kept models, so that they are made anew."""
        for place in map(self._place, models):
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)

    def _place(self, model: str) -> Path | None:
        return None if self.study is None or not model else self.study / FOLDER / model
