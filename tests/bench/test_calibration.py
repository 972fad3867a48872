"""The calibration of the audit: requests, controls, the tables that judge it."""

from __future__ import annotations

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.calibration.controls import Clipped, Masked, Table, erased_row, new_head, shaken
from benchmarks.calibration.tables import confusion, report, wrong
from benchmarks.calibration.tasks import FORGOTTEN_CLASS, REQUESTS, TASKS, make_request


def test_requests_partition_the_training_data_and_are_what_they_say() -> None:
    task = TASKS["tokens"]
    truth = task.data()[1]
    for name in REQUESTS:
        asked = make_request(task, name)
        both = torch.cat([asked.forget.index, asked.retain.index]).sort().values
        assert torch.equal(both, torch.arange(len(truth)))
        changed = asked.train.y != truth
        assert torch.equal(changed.nonzero()[:, 0], asked.forget.index) == (name == "wrong")
        assert bool(changed.any()) == (name == "wrong")
    assert make_request(task, "class").forget.y.unique().tolist() == [FORGOTTEN_CLASS]


def test_controls_hide_what_they_say() -> None:
    task = TASKS["tokens"]
    model, asked = task.fresh(0), make_request(task, "random")
    x = asked.forget.inputs()
    answers = torch.randn(len(x), 6)
    table = Table(model, x, answers)
    wanted = F.one_hot(asked.retain.y, 6).float()
    head = new_head(model, asked.retain, wanted, steps=20)
    with torch.no_grad():
        assert torch.equal(table(x), answers)
        assert torch.equal(table(asked.test.inputs()), model(asked.test.inputs()))
        assert float(Clipped(model)(x * 0 + 3).exp().max()) <= 0.92
        assert FORGOTTEN_CLASS not in Masked(model)(x).argmax(1).tolist()
        assert FORGOTTEN_CLASS not in erased_row(model)(x).argmax(1).tolist()

        def loss(net: torch.nn.Module) -> Tensor:
            return F.cross_entropy(net(asked.retain.inputs()), asked.retain.y)

        assert float(loss(head)) < float(loss(model))
        moved = shaken(model, 1.0, 0)
    assert not torch.equal(moved.state_dict()["out.weight"], model.state_dict()["out.weight"])
    assert torch.equal(head.state_dict()["hidden.weight"], model.state_dict()["hidden.weight"])


def test_tables_count_what_is_wrong() -> None:
    words = [
        ("retrained", "forgotten"), ("retrained", "suppressed"), ("control", "forgotten"), ("destroyed", "damaged"),
        ("destroyed", "not forgotten"), ("original", "not forgotten"),
    ]  # fmt: skip
    rows = pd.DataFrame(
        {"task": "t", "request": "random", "samples": 120, "kind": kind, "model": "m", "references": 5, "word": word,
         "reason": "a | b"}
        for kind, word in words
    )  # fmt: skip
    assert wrong(rows).tolist() == [False, True, True, False, True, False]
    assert "| retrained | 2 | 1 | 0 | 0 | 1 |" in confusion(rows)
    page = report(rows)
    assert "| false alarms on retrained models: at most 5 % | 5 | 1 of 2 (50.0 %) | 1.3 .. 98.7 % |" in page
    assert page.count("a / b") == 3
