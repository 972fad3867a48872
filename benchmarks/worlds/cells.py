"""Trained networks and cells, kept on disk by content: data, options, seed and the code that made them."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

import expunge
from benchmarks.worlds.judge import Scores, scores
from benchmarks.worlds.requests import Request, make_request
from benchmarks.worlds.worlds import World
from expunge.core.errors import Cancelled, ExpungeError
from expunge.core.options import to_dict
from expunge.data.convert import as_split
from expunge.methods.base import make_method

FIRST_REFERENCE = 1000  # references have seeds of their own
LIMIT = 3.0  # retrainings; a method that takes longer is stopped, and the cell counts as an error
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """One world and one request: the models around a cell. cache: the folder of what was done before."""

    world: World
    request: str
    cache: Path
    asked: Request = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "asked", make_request(self.request, self.world.data()))

    def original(self, seed: int) -> nn.Module:
        return self._trained(torch.arange(len(self.asked.y)), seed)[0]

    def reference(self, number: int) -> tuple[nn.Module, float]:
        """A model retrained without the forgotten samples, and its CPU seconds."""
        return self._trained(self.asked.retain, FIRST_REFERENCE + number)

    def reference_scores(self, number: int) -> Scores:
        model, seconds = self.reference(number)
        return {**scores(model, self.world.data(), self.asked), "seconds": seconds}

    def original_scores(self, seed: int) -> Scores:
        return scores(self.original(seed), self.world.data(), self.asked)

    def _trained(self, rows: Tensor, seed: int) -> tuple[nn.Module, float]:
        data = self.world.data()
        x, y = data.x[rows], self.asked.y[rows]
        made = [code(HERE / "nets.py"), code(HERE / "worlds.py"), self.world.name, torch.__version__, seed]
        key = digest(*made, x.numpy().tobytes(), y.numpy().tobytes())
        path = self.cache / "trained" / f"{self.world.name}-{key}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                began = time.process_time()
                net = self.world.train(x, y, seed)
                write(path, lambda part: torch.save(
                    {"state": net.state_dict(), "seconds": time.process_time() - began}, part))  # fmt: skip
        kept = torch.load(path, weights_only=True)
        net = self.world.fresh(seed)
        net.load_state_dict(kept["state"])
        return net.eval(), float(kept["seconds"])


def run_cell(bench: Bench, method: str, seed: int, options: Mapping[str, Any], retraining: float) -> dict[str, Any]:
    """The cell's facts, from the cache or newly made. retraining: CPU seconds of one, for the limit."""
    made = make_method(method, **options)
    facts = {
        "world": bench.world.name,
        "request": bench.request,
        "method": method,
        "seed": seed,
        "options": json.dumps(dict(options), sort_keys=True),
    }
    original = bench.original(seed)
    state = b"".join(v.numpy().tobytes() for v in original.state_dict().values())
    judges = [code(HERE / name) for name in ("judge.py", "requests.py")]
    facts["source"] = code_behind(type(made).__module__)
    key = digest(state, json.dumps(facts), json.dumps(to_dict(made)), *judges)
    path = bench.cache / "cells" / f"{key}.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    result = {**facts, **_unlearned(bench, original, made, seed, LIMIT * retraining)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, lambda part: part.write_text(json.dumps(result), encoding="utf-8"))
    return result


def _unlearned(bench: Bench, original: nn.Module, method: Any, seed: int, limit: float) -> dict[str, Any]:
    data, asked, world = bench.world.data(), bench.asked, bench.world
    store = as_split((data.x, asked.y), name="train")
    began = time.process_time()
    try:
        made = expunge.unlearn(
            original,
            forget=store.take(asked.forget, "forget"),
            retain=store.take(asked.retain, "retain"),
            validation=(data.held_x, data.held_y),
            method=method,
            wrong_labels=bench.request == "wrong",  # who asks for it knows
            recipe={"epochs": world.epochs, "batch_size": world.batch, **world.recipe},
            initial=world.fresh(seed),
            seed=seed,
            device="cpu",
            precision="float32",
            measure=False,
            cancelled=lambda: time.process_time() - began > limit,
        )
    except Cancelled:
        return {"error": f"stopped after {LIMIT:g} retrainings", "seconds": time.process_time() - began}
    except ExpungeError as error:
        return {"error": str(error), "seconds": time.process_time() - began}
    seconds = time.process_time() - began
    notes = " ".join(made.notes)
    return {**scores(made.model, data, asked), "seconds": seconds, "status": made.status, "notes": notes}


def digest(*parts: object) -> str:
    """20 hex digits over the parts, bytes as they are, all else by its text."""
    made = hashlib.sha256()
    for part in parts:
        made.update(part if isinstance(part, bytes) else str(part).encode())
        made.update(b"\x1f")
    return made.hexdigest()[:20]


def write(path: Path, how: Callable[[Path], object]) -> None:
    """Through a second file, so that an interrupted run leaves no half of one."""
    part = path.with_suffix(".part")
    how(part)
    part.replace(path)


@functools.cache
def code(path: Path) -> str:
    """Hash of what a source file does: comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [n for n in body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]  # type: ignore[attr-defined]
    return digest(ast.dump(tree))


@functools.cache
def code_behind(module: str) -> str:
    """Hash of a method's module and of all that it imports from the packages of methods, training and numerics."""
    waiting, hashes = [module], {}
    while waiting:
        name = waiting.pop()
        source = importlib.util.find_spec(name) if name not in hashes else None
        if source is None or source.origin is None:
            continue
        path = Path(source.origin)
        hashes[name] = code(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[:2][-1] in BEHIND:
                waiting.append(str(node.module))
    return digest(*sorted(f"{name} {value}" for name, value in hashes.items()))


BEHIND = ("methods", "training", "numerics")
