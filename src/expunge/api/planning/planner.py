"""Which method fulfils a batch of requests, with what options, at what cost, and why; decided by rules, in this order.

1. Exact where it can be had: a head that keeps its statistics forgets by them, a model that was trained in shards by
   training again what saw the samples; any other is retrained. Within the budget, or beyond it if the drift of the
   model says "retrain now".
2. Else, where a guarantee is asked for, the certified method. Else the first method of `choices`, by what was measured,
   whose needs are at hand and allowed, and that fits the budget; the next one that could run is named beside it, an
   exact one first.
3. Else a refusal in one sentence that says what to provide.

Seconds are counted work (`work`) times measured pace (`pace`): right within a factor of about three, other load aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.api.planning.choices import NEVER, Choice, choices, options
from expunge.api.planning.pace import Pace
from expunge.api.planning.plan import KINDS, Alternative, Plan, duration
from expunge.api.planning.ranks import Ranks, measured
from expunge.api.planning.situation import Situation, provide
from expunge.core.errors import UsageError
from expunge.core.options import describe, to_dict
from expunge.methods import METHODS
from expunge.methods.base import Method, make_method
from expunge.training.advice import Advice


def make_plan(
    situation: Situation,
    method: str = "auto",
    *,
    given: Mapping[str, Any] | None = None,
    pace: Pace | None = None,
    advice: Advice | None = None,
    ranks: Ranks | None = None,
    exact: bool = True,
) -> Plan:
    """The plan. method: "auto", or a registered name or preset, which is taken if it can run at all.

    given: options that replace those of the plan; only for a named method. pace: of this model on this machine; without
    it there are no seconds, and a budget cannot be kept. advice: on the version that is to be changed. ranks: what was
    measured of the methods; default: what is packaged. exact: whether rule 1 may train everything again.
    Raises `UsageError` where nothing fits.
    """
    if situation.budget_seconds is not None and pace is None:
        raise UsageError("a budget in seconds needs the pace of the model on this machine; pass pace=measure_pace(..).")
    planner = _Planner(situation, pace, advice, measured() if ranks is None else ranks, exact)
    if method != "auto":
        return planner.named(method, dict(given or {}))
    if given:
        raise UsageError(f"options ({', '.join(sorted(given))}) belong to a method; name it instead of `auto`.")
    return planner.auto()


class _Planner:
    def __init__(
        self, situation: Situation, pace: Pace | None, advice: Advice | None, ranks: Ranks, exact: bool
    ) -> None:
        self.at, self.pace, self.advice, self.ranks, self.may_retrain = situation, pace, advice, ranks, exact
        self.choices = choices(situation, ranks)
        self.sizes = situation.sizes
        self.rejected: list[Alternative] = []

    @property
    def urged(self) -> bool:
        return self.advice is not None and self.advice.word == "retrain now"

    # rule 0: what a person asked for

    def named(self, name: str, given: dict[str, Any]) -> Plan:
        base, _, preset = name.partition("/")
        choice = next((one for one in self.choices if one.method == base), None)
        settings = {} if preset else options(base, self.at, self.ranks)
        chosen = make_method(name, **{**settings, **given}).fitted(self.sizes)
        absent = self.obstacles(chosen)
        if absent:
            raise UsageError(f"{base} {_joined(absent)}; provide that, or choose another method.")
        seconds = self.seconds(chosen)
        budget = self.at.budget_seconds
        why = [f"{base} was asked for."]
        if choice is not None and not preset and not given:
            why.append(f"{choice.evidence}.")
        if "exact" in chosen.card.tags:
            why.append(_EXACT)
        if budget is not None and seconds is not None and seconds > budget:
            why.append(f"the estimate is above the budget of {duration(budget)}, which is set aside.")
            budget = None
        return self.plan(chosen, why, budget, whole=bool(preset))

    # rule 1

    def auto(self) -> Plan:
        name = "exact-head" if self.at.statistics else "sisa" if self.at.sharded is not None else "retrain"
        exact = make_method(name)
        absent, seconds, budget = self.obstacles(exact), self.seconds(exact), self.at.budget_seconds
        urged = self.urged
        if not absent:
            fits = budget is None or seconds is None or seconds <= budget
            if (fits and (self.may_retrain or self.at.statistics)) or urged:
                return self.exact(exact, seconds, fits=fits, urged=urged)
            reason = f"exact, but its estimate is above the budget of {duration(budget or 0.0)}."
            if fits:
                reason = "exact, but a whole training; name it, or set a budget for it, to have that."
            self.rejected.append(Alternative(method=name, why_not=reason, seconds=seconds))
        else:
            self.rejected.append(Alternative(method=name, why_not=f"{_joined(absent)}."))
        if self.at.sharded is not None:
            raise UsageError(self.refused_shards(absent, seconds))
        return self.certified() if self.at.certified else self.approximate(urged)

    def exact(self, chosen: Method, seconds: float | None, *, fits: bool, urged: bool) -> Plan:
        budget = self.at.budget_seconds
        why = [_EXACT]
        if chosen.card.name == "exact-head":
            why = ["exact for the head: the samples' terms leave the statistics that its weights follow from."]
        elif self.at.sharded is not None:
            cost = self.at.sharded
            why.append(
                f"the model was trained in shards: {cost.stages} of {cost.total_stages} stages are trained again, "
                f"{cost.share:.0%} of a whole training."
            )
        if not fits:
            why.append(
                f"drift says retrain now, so the budget of {duration(budget or 0.0)} is set aside"
                f"{'' if seconds is None else f' (estimate {duration(seconds)})'}."
            )
        elif urged:
            why.append("drift says retrain now.")
        elif budget is None and chosen.card.name != "exact-head":
            why.append("no budget was set; with one, methods that change the model would be weighed by it.")
        elif budget is not None:
            why.append(f"the estimate is within the budget of {duration(budget)}.")
        if chosen.card.name == "retrain" and not self.at.initial:
            why.append(
                "the weights that training started from are unknown, so fresh ones are drawn: right for a model "
                "that was trained from scratch, a loss for one that was pre-trained."
            )
        self.list_others()
        return self.plan(chosen, why, budget if fits else None)

    def refused_shards(self, absent: list[str], seconds: float | None) -> str:
        if absent:
            return f"the model was trained in shards, and sisa {_joined(absent)}; provide that, or name another method."
        return (
            f"the model was trained in shards, and to forget exactly takes about {duration(seconds or 0.0)}, more than "
            f"the budget of {duration(self.at.budget_seconds or 0.0)}; raise it, or name a method: an approximate step "
            "would end the exactness."
        )

    # rule 2, where a guarantee is asked for

    def certified(self) -> Plan:
        chosen = make_method("noisy-finetune").fitted(self.sizes)
        reason, _ = self.why_not(chosen)
        if reason:
            raise UsageError(
                f"a guarantee was asked for, but {self.rejected[0].method}, which is exact, cannot be had here, and "
                f"noisy-finetune {reason.removesuffix('.')}; provide that, or do without a guarantee."
            )
        why = ["certified: an (epsilon, delta) guarantee was asked for, and nothing exact fits."]
        why += [f"{one.method} is not taken: {one.why_not}" for one in self.rejected[:1]]
        self.list_others("without a guarantee, which was asked for.")
        return self.plan(chosen, why, self.at.budget_seconds)

    # rule 2

    def approximate(self, urged: bool) -> Plan:
        for place, choice in enumerate(self.choices):
            chosen = self.method(choice)
            reason, seconds = self.why_not(chosen)
            if not reason:
                why = [*self.reasons(choice, urged), *self.second(self.choices[place + 1 :])]
                return self.plan(chosen, why, self.at.budget_seconds, rest=True)
            self.rejected.append(Alternative(method=choice.method, why_not=reason, seconds=seconds))
        raise UsageError(self.refusal())

    def second(self, rest: list[Choice]) -> list[str]:
        """The next choice that could run, in a sentence; one that never sees the samples comes first."""
        able = [choice for choice in rest if not self.why_not(self.method(choice))[0]]
        able.sort(key=lambda choice: "exact" not in METHODS.card(choice.method).tags)
        if not able:
            return []
        seconds = self.seconds(self.method(able[0]))
        cost = "" if seconds is None else f", about {duration(seconds)}"
        exact = " It never sees the samples, so no attack can find them." if _is_exact(able[0].method) else ""
        return [f"second choice: {able[0].method}{cost}. {able[0].evidence}.{exact}"]

    def why_not(self, chosen: Method) -> tuple[str, float | None]:
        absent = self.obstacles(chosen)
        if absent:
            return f"{_joined(absent)}.", None
        seconds, budget = self.seconds(chosen), self.at.budget_seconds
        if budget is not None and seconds is not None and seconds > budget:
            return f"its estimate is above the budget of {duration(budget)}.", seconds
        return "", seconds

    def reasons(self, choice: Choice, urged: bool) -> list[str]:
        why = [f"{choice.evidence}."]
        why += [f"{one.method} is not taken: {one.why_not}" for one in self.rejected[:1]]
        if self.advice is not None and self.advice.word == "retrain soon":
            why.append("drift says retrain soon.")
        if urged:
            why.append("drift says retrain now, but that cannot be done here: provide what retrain lacks, soon.")
        return why

    # rule 3

    def refusal(self) -> str:
        """One sentence: what to provide, or what budget would do."""
        slow = [one for one in self.rejected if one.seconds is not None]
        if slow:
            fastest = min(slow, key=lambda one: one.seconds or 0.0)
            return (
                f"no method fits the budget of {duration(self.at.budget_seconds or 0.0)}: the fastest that could run, "
                f"{fastest.method}, takes about {duration(fastest.seconds or 0.0)}; raise the budget."
            )
        ways: dict[str, list[str]] = {}
        lacking = {choice.method: self.at.lacking(self.method(choice).needs) for choice in self.choices}
        for name, missing in lacking.items():
            if not any(set(other) < set(missing) for other in lacking.values()):
                ways.setdefault(provide(missing), []).append(name)
        shown = ", or ".join(f"{things} (for {' or '.join(names)})" for things, names in ways.items())
        return f"nothing that is known to forget {KINDS[self.at.kind]} can run here; provide, or allow, {shown}."

    # what all rules share

    def method(self, choice: Choice) -> Method:
        return make_method(choice.method, **choice.options).fitted(self.sizes)

    def obstacles(self, chosen: Method) -> list[str]:
        """Phrases that follow the method's name: "needs ..", "is not allowed ..". Empty if it can run."""
        name, tags = chosen.card.name, chosen.card.tags
        if name == "original":
            return ["forgets nothing"]
        if not chosen.same_tensors and self.at.sharded is None:
            return ["needs a model that was trained in shards"]
        if name == "exact-head" and not self.at.statistics:
            return ["needs a head that expunge.fit_head made"]
        absent = self.at.missing(chosen.needs)
        if "exact" in tags and chosen.needs.retain != "none" and not self.at.retain and not absent:
            return ["needs samples that stay"]
        return absent

    def seconds(self, chosen: Method) -> float | None:
        work = chosen.cost(self.sizes)
        return None if work is None or self.pace is None else self.pace.seconds(work)

    def list_others(self, why_not: str = "approximate, where exact can be had.") -> None:
        """The approximate methods that could have run, with their cost."""
        for choice in self.choices:
            chosen = self.method(choice)
            absent = self.obstacles(chosen)
            reason = f"{_joined(absent)}." if absent else why_not
            seconds = None if absent else self.seconds(chosen)
            self.rejected.append(Alternative(method=choice.method, why_not=reason, seconds=seconds))

    def plan(
        self, chosen: Method, why: list[str], budget: float | None = None, *, rest: bool = False, whole: bool = False
    ) -> Plan:
        name, work = chosen.card.name, chosen.cost(self.sizes)
        if rest:
            seen = {name, *(one.method for one in self.rejected)}
            for choice in self.choices:
                if choice.method not in seen:
                    reason, seconds = self.why_not(self.method(choice))
                    why_not = reason or f"{name} comes first. {choice.evidence}."
                    self.rejected.append(Alternative(method=choice.method, why_not=why_not, seconds=seconds))
            seen |= {"original", "sisa", "retrain", "exact-head", *(one.method for one in self.rejected)}
            self.rejected += [
                Alternative(method=other, why_not=_UNMEASURED, weighed=False)
                for other in METHODS.usable()
                if other not in seen and not set(METHODS.card(other).tags) & set(NEVER)
            ]
        return Plan(
            method=name,
            options=to_dict(chosen) if whole else _changed(chosen),
            exact="exact" in chosen.card.tags,
            why=tuple(why),
            estimate_seconds=None if work is None or self.pace is None else self.pace.seconds(work),
            work=work,
            pace=self.pace,
            budget_seconds=budget,
            alternatives=tuple(self.rejected),
            retrain_now=self.advice if self.urged else None,
            situation=self.at,
        )


_EXACT = "exact: the new weights never saw the samples, by construction, given the stated data and code."


_UNMEASURED = "there is no measurement of ours for this kind of request."


def _is_exact(method: str) -> bool:
    return "exact" in METHODS.card(method).tags


def _joined(phrases: list[str]) -> str:
    return " and ".join(phrases)


def _changed(chosen: Method) -> dict[str, Any]:
    """Options that are not at their defaults, so that a plan reads well."""
    defaults = {option.name: option.default for option in describe(type(chosen))}
    return {name: value for name, value in to_dict(chosen).items() if value != defaults[name]}
