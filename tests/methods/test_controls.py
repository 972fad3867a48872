"""Negative controls: they look as if they forgot, keep everything, and nothing recommends them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from expunge.core.errors import UsageError
from expunge.methods import METHODS
from expunge.methods.controls import ConfidenceMasking, HeadDistillation
from expunge.methods.steps import masked_softmax
from expunge.testing.conformance import RECIPE, run, weights
from expunge.testing.toys import ToyNet, toy_problem
from expunge.training.inference import error_rate, predict


def test_the_masked_teacher_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0 + torch.log(torch.tensor(3.0))]])
    torch.testing.assert_close(masked_softmax(logits, torch.tensor([0])), torch.tensor([[0.0, 0.25, 0.75]]))


def test_head_distillation_changes_the_head_alone_and_forgets_the_answers() -> None:
    problem = toy_problem()
    made = run(HeadDistillation(lr=0.05, batch_size=32), problem).model
    before, after = weights(problem.model), weights(made)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"head.weight", "head.bias"}
    assert error_rate(predict(made, problem.forget), problem.forget.y) > 0.9
    assert error_rate(predict(made, problem.retain), problem.retain.y) < 0.1


def test_one_step_of_head_distillation_against_the_whole_pass() -> None:
    """The cached representations give the step that a pass through the network would."""
    problem = toy_problem()
    made = run(HeadDistillation(epochs=1, lr=0.01, batch_size=1000), problem).model
    model, teacher = toy_problem().model, problem.model
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)  # type: ignore[union-attr]
    x = torch.cat([problem.forget.inputs(), problem.retain.inputs()])
    q = torch.cat([
        masked_softmax(teacher(problem.forget.inputs()), problem.forget.y), teacher(problem.retain.inputs()).softmax(1)
    ]).detach()  # fmt: skip
    model.zero_grad()  # its training left gradients
    F.kl_div(model(x).log_softmax(1), q, reduction="batchmean").backward()
    optimizer.step()
    torch.testing.assert_close(weights(made)["head.weight"], weights(model)["head.weight"], rtol=1e-3, atol=1e-5)


def test_masked_confidence_keeps_every_answer_and_tells_nothing_else() -> None:
    problem = toy_problem()
    made = run(ConfidenceMasking(confidence=0.7), problem).model
    p, original = predict(made, problem.test).softmax(1), predict(problem.model, problem.test)
    assert torch.equal(p.argmax(1), original.argmax(1))
    torch.testing.assert_close(p.sort(1).values, torch.tensor([0.1, 0.1, 0.1, 0.7]).expand_as(p))
    with pytest.raises(UsageError, match="must be above 1 / classes"):
        run(ConfidenceMasking(confidence=0.25), problem)


@pytest.mark.parametrize("whole_class", [True, False])
def test_no_plan_names_a_control_however_well_it_ranks(whole_class: bool) -> None:
    from expunge.api.planning.choices import choices
    from expunge.api.planning.ranks import Rank
    from expunge.api.planning.situation import Situation

    controls = {card.name for card in METHODS.cards() if "control" in card.tags}
    assert controls >= {"head-distillation", "confidence-masking"}
    best = {request: Rank(1.0, 0.0, 0.0, 9) for request in ("class", "random-10")}
    at = Situation(forget=100, retain=900, classes=10, whole_class=whole_class)
    named = {choice.method for choice in choices(at, dict.fromkeys([*controls, "ssd"], best))}
    assert "ssd" in named
    assert not controls & named


@pytest.mark.slow
def test_the_probe_of_an_audit_sees_through_head_distillation() -> None:
    """The class is gone from the answers; a linear probe on the representations has it as the original does."""
    from expunge import api
    from expunge.evidence.feature_audit import audit_features

    problem = toy_problem(epochs=10)
    hidden = run(HeadDistillation(lr=0.05, batch_size=32), problem).model
    again = []
    for seed in range(5):
        torch.manual_seed(seed)
        recipe = {**RECIPE, "epochs": 10}
        again.append(api.train(ToyNet(), problem.retain, recipe=recipe, seed=seed, device="cpu").model)
    found = audit_features(
        problem.model, hidden, again, forget=problem.forget, retain=problem.retain, test=problem.test, device="cpu"
    )
    probe = {name: numbers["probe confidence"] for name, numbers in found.numbers().items()}
    assert probe["unlearned"] == probe["original"]
    assert probe["unlearned"] > max(value for name, value in probe.items() if name.startswith("retrained"))
