"""Choosing options without an oracle: the same budget for every method, by a rule that needs no retrained model.

Data       the study's, with seeds of its own (`tune.seeds`) and a validation set held out; test data are never read
Trials     the first one has the study's own options; the others are Optuna's (TPE). A trial's number is its score
           averaged over the study's scenarios and the tuning seeds; lower is better
Score      how far forgetting is from right, by a rule, plus what the retained and the validation samples (of the
           classes that stay) lost in accuracy against the original model, each counted where positive
`match`    |forget accuracy - what a model that never saw the samples would reach|: 0 for classes that go as a whole;
           for samples with a wrong label the share of validation errors that happen to hit it, error / (classes - 1);
           otherwise the same model's accuracy on validation samples of the same classes ("validation-matched")
`rf-jsd`   Spartalis et al., CVPR 2025 (LoTUS), as far as it is known: Jensen-Shannon divergence, in bits, between the
           mean output of the unlearned model on the samples to forget of a class and that of the *original* on
           validation samples of the class; mean over classes, weighted by samples to forget. Not for whole classes or
           wrong labels, where the original knows no right answer
Regret     with `oracle`, a retrained model of the same tuning seeds gives every trial its gap: the mean of |difference|
           of forget, retained and validation accuracy. regret = gap of the chosen trial - smallest gap of all trials.
           It is printed beside the choice and never makes one

Trials are kept in Optuna's journal, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from filelock import FileLock, Timeout
from torch import nn

from expunge.api.prepare import pick_device
from expunge.api.result import write_text
from expunge.bench.cells import Cell, address, expand
from expunge.bench.engines import PRELOAD
from expunge.bench.reading import load_study, parse_study
from expunge.bench.recipe import Space, Study
from expunge.bench.workbench import Workbench
from expunge.core.errors import ExpungeError, UsageError, nearest
from expunge.core.options import to_dict
from expunge.core.pool import in_processes
from expunge.core.run import Progress
from expunge.core.seeds import derive
from expunge.data.cache import cache_root
from expunge.evidence.distances import jsd
from expunge.methods.base import make_method
from expunge.methods.rewind import matched_error
from expunge.metrics.base import Evaluation

if TYPE_CHECKING:
    import optuna

HELD_OUT = 0.1  # of the training samples, where the study holds out none
JOURNAL = "trials.journal"
NOT_TUNED = ("original", "retrain")


@dataclass(frozen=True)
class Trial:
    """One setting of one method. score: by the rule; gap: to retraining, None without an oracle; failed: why."""

    options: dict[str, Any]
    score: float | None
    gap: float | None
    failed: str = ""


@dataclass(frozen=True)
class Tuned:
    """What was tried for one method. The first trial has the study's options."""

    label: str
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """By the rule alone; None where every trial failed. The earliest on ties."""
        return min((t for t in self.trials if t.score is not None), key=lambda t: cast(float, t.score), default=None)

    @property
    def regret(self) -> float | None:
        """How much closer to retraining an oracle would have come with the same trials."""
        gaps = [t.gap for t in self.trials if t.gap is not None]
        if not gaps or self.best is None or self.best.gap is None:
            return None
        return self.best.gap - min(gaps)


def tune(
    recipe: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    oracle: bool = False,
    progress: Callable[[Progress], None] | None = None,
    overrides: Sequence[str] = (),
) -> list[Tuned]:
    """Search options for every method of a study and write `tuned.yaml`, a study with what was found.

    jobs: methods searched at the same time, one thread each. oracle: also print regret (trains the reference).
    Raises `UsageError` for a study, a space or a folder that does not fit.
    """
    _optuna()
    study = load_study(recipe, overrides)
    part, folder = study.tune, Path(out)
    tuning = parse_study(
        {
            **study.model_dump(mode="json"),
            "seeds": list(part.seeds),
            "data": {
                **study.data.model_dump(mode="json"),
                "validation": study.data.validation or HELD_OUT,
                "resample": True,
            },
        }
    )
    labels = [label for label, method in tuning.named_methods() if method.card.name not in NOT_TUNED]
    for label, space in part.spaces.items():
        if space is not None and label not in labels:
            raise UsageError(f"tune.spaces: no method is labelled `{label}`; {nearest(label, labels)}.")
    searched = [label for label in labels if space_of(tuning, label)]
    folder.mkdir(parents=True, exist_ok=True)
    header = {"name", "title", "about", "published"}
    source = Workbench(tuning, cache_root()).fingerprint()
    identity = address({**tuning.model_dump(mode="json", exclude=header), "source": source, "oracle": oracle})
    text = tuning.model_dump_json()
    items = [(text, str(folder), label, oracle) for label in searched]
    done: list[Tuned] = []

    def tell() -> None:
        if progress is not None:
            progress(Progress("methods", len(done), len(items), {}))

    with _claimed(folder):
        _check_folder(folder, identity)
        tell()
        for tuned in in_processes(_search, items, jobs=jobs, preload=PRELOAD):
            done.append(tuned)
            tell()
    done.sort(key=lambda item: labels.index(item.label))
    write_text(folder / "tuned.yaml", _as_recipe(study, Path(recipe), folder, done))
    write_text(folder / "trials.json", json.dumps([asdict(item) for item in done], indent=1))
    return done


def space_of(study: Study, label: str) -> dict[str, Space]:
    """Option -> what is tried: the study's space, else every rate within a factor of ten, and epochs by halves.

    The study's own value always belongs. Raises `UsageError` for an option that the method lacks.
    """
    method = dict(study.named_methods())[label]
    options = to_dict(method)
    configured = study.tune.spaces.get(label)
    if configured is not None:
        for name in configured:
            if name not in options:
                raise UsageError(f"tune.spaces.{label}: unknown option `{name}`; {nearest(name, list(options))}.")
        return {name: _with_own(space, options[name]) for name, space in configured.items()}
    spaces: dict[str, Space] = {}
    for name, value in options.items():
        if (name in ("lr", "scale") or name.startswith("lr_")) and isinstance(value, float):
            spaces[name] = Space(low=value / 10, high=value * 10, log=True)
        if name == "epochs" and isinstance(value, int) and value > 0:
            spaces[name] = Space(values=tuple(sorted({max(1, value // 2), value, 2 * value})))
    return spaces


def score_of(numbers: Mapping[str, float]) -> float:
    """`forgetting` by the rule, and what `retain` and `validation` lost.

    >>> round(score_of({"forgetting": 0.1, "retain lost": 0.05, "validation lost": -0.2}), 3)
    0.15
    """
    return numbers["forgetting"] + sum(max(0.0, numbers[f"{split} lost"]) for split in ("retain", "validation"))


class Judge:
    """Measures models of one tuning study on forget, retained and validation data."""

    def __init__(self, bench: Workbench, cell: Cell) -> None:
        self.bench, self.cell = bench, cell
        forgetting = bench.forgetting(cell)
        validation = bench.data(cell.seeds["data"])[1]
        if validation is None:
            raise ExpungeError("tuning needs a validation set")
        self.forget, self.retain = forgetting.forget, forgetting.retain
        removed_classes = self.forget.y.unique()
        removed_classes = removed_classes[~torch.isin(removed_classes, self.retain.y)]
        self.removed_classes, self.validation = removed_classes, validation
        retained = ~torch.isin(validation.y, removed_classes)
        self.retained = validation.take(validation.index[retained])
        self.wrong = bool((forgetting.true_labels[self.forget.index] != self.forget.y).all())
        self.rule = bench.study.tune.rule
        if self.rule == "rf-jsd" and (self.wrong or len(removed_classes)):
            raise UsageError("the rule rf-jsd cannot judge whole classes or wrong labels; set tune.rule=match.")
        outputs = self._outputs(bench.original(cell).model)
        self.before, self.unseen = self.accuracies(outputs), outputs.logits("model", "validation").softmax(1)

    def numbers(self, model: nn.Module) -> dict[str, float]:
        """Accuracies, `forgetting` by the rule, and what was lost against the original."""
        outputs = self._outputs(model)
        accuracies = self.accuracies(outputs)
        forgetting = abs(accuracies["forget"] - self.target(outputs)) if self.rule == "match" else self.rf_jsd(outputs)
        lost = {f"{split} lost": self.before[split] - accuracies[split] for split in ("retain", "validation")}
        return {**accuracies, "forgetting": forgetting, **lost}

    def target(self, outputs: Evaluation) -> float:
        """Forget accuracy of a model that never saw the samples (`match`)."""
        if self.wrong:
            return (1 - self.accuracies(outputs)["validation"]) / (self.forget.num_classes - 1)
        if len(self.removed_classes) == len(self.forget.y.unique()):
            return 0.0
        return 1 - matched_error(outputs.logits("model", "validation"), self.retained.y, self.forget.y)

    def rf_jsd(self, model_outputs: Evaluation) -> float:
        """RF-JSD in bits per forget sample, see the module."""
        outputs, labels = model_outputs.logits("model", "forget").softmax(1), self.forget.y
        total = 0.0
        for label in labels.unique().tolist():
            unlearned, reference = outputs[labels == label], self.unseen[self.retained.y == label]
            if not len(reference):
                raise UsageError(f"no validation sample has class {label}; hold out more, or set tune.rule=match.")
            means = (rows.mean(0, keepdim=True).log() for rows in (unlearned, reference))
            total += len(unlearned) * float(jsd(*means))
        return total / len(labels)

    def accuracies(self, outputs: Evaluation) -> dict[str, float]:
        """Accuracy on every split, in [0, 1]."""
        return {name: float(outputs.correct("model", name).double().mean()) for name in outputs.splits}

    def _outputs(self, model: nn.Module) -> Evaluation:
        splits = {"forget": self.forget, "retain": self.retain, "validation": self.retained}
        return Evaluation({"model": model}, splits, device=pick_device(self.bench.study.device))

    def gap(self, numbers: Mapping[str, float]) -> float:
        """Mean |difference| to the retrained model of this cell."""
        reference = self.bench.reference(self.cell)
        if reference is None:
            raise UsageError("regret needs the retrained model, but the study says `retrain: false`.")
        exact = self.accuracies(self._outputs(reference.model))
        return sum(abs(numbers[s] - exact[s]) for s in ("forget", "retain", "validation")) / 3


def search(study: Study, folder: Path, label: str, *, oracle: bool) -> Tuned:
    """All trials of one method, those that the journal holds included."""
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench = Workbench(study, cache_root())
    method = dict(study.named_methods())[label]
    cells = [cell for cell in expand(study, bench.fingerprint()) if cell.method_label == label]
    space, options = space_of(study, label), to_dict(method)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    trials = optuna.create_study(
        study_name=label,
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=derive(study.tune.seeds[0], "tuning", label) % 2**32),
        load_if_exists=True,
        direction="minimize",
    )
    if not trials.trials:
        trial_numbers = {
            n: options[n] for n, item in space.items() if item.values is not None or options[n] is not None
        }
        trials.enqueue_trial(trial_numbers)
    judges: dict[str, Judge] = {}
    while len(_finished(trials)) < study.tune.trials:
        trial = trials.ask()
        chosen = {name: _suggest(trial, name, item) for name, item in space.items()}
        try:
            scores, gaps = [], []
            for cell in cells:
                judge = judges.setdefault(str(cell.group), Judge(bench, cell))
                candidate = make_method(method.card.name, **{**options, **chosen})
                result = bench.apply(cell, candidate, cell.seeds["unlearn"])
                numbers = judge.numbers(result.model)
                scores.append(score_of(numbers))
                if oracle:
                    gaps.append(judge.gap(numbers))
        except UsageError:
            raise
        except ExpungeError as error:  # it diverged: such a setting is out, and has used its share of the budget
            trial.set_user_attr("failed", str(error))
            trials.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if gaps:
            trial.set_user_attr("gap", sum(gaps) / len(gaps))
        trials.tell(trial, sum(scores) / len(scores))
    return Tuned(label, [_trial(item) for item in _finished(trials)[: study.tune.trials]])


def _search(_: None, item: tuple[str, str, str, bool]) -> Tuned:
    text, folder, label, oracle = item
    return search(parse_study(json.loads(text)), Path(folder), label, oracle=oracle)


def _suggest(trial: optuna.Trial, name: str, space: Space) -> Any:
    if space.values is not None:
        return trial.suggest_categorical(name, list(space.values))
    low, high = cast(float, space.low), cast(float, space.high)
    if isinstance(space.low, int) and isinstance(space.high, int):
        return trial.suggest_int(name, space.low, space.high, log=space.log)
    return trial.suggest_float(name, low, high, log=space.log)


def _with_own(space: Space, value: Any) -> Space:
    """The space with the study's own value in it."""
    if space.values is not None:
        return space if value in space.values else Space(values=(value, *space.values))
    if value is None:
        return space
    low, high = cast(float, space.low), cast(float, space.high)
    return Space(low=min(low, value), high=max(high, value), log=space.log)


def _finished(trials: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in trials.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "FAIL") and
            (trial.state.name == "COMPLETE" or "failed" in trial.user_attrs)]  # fmt: skip


def _trial(trial: optuna.trial.FrozenTrial) -> Trial:
    return Trial(dict(trial.params), trial.value, trial.user_attrs.get("gap"), trial.user_attrs.get("failed", ""))


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Two searches in one folder would both spend the budget."""
    lock = FileLock(folder / "tuning.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExpungeError(f"another process is tuning in {folder}; wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()


def _check_folder(folder: Path, identity: str) -> None:
    """Trials of another study or budget must not count for this one."""
    marker = folder / "tuning.id"
    if marker.is_file():
        if marker.read_text(encoding="utf-8").strip() != identity:
            raise UsageError(f"{folder} holds trials of other settings; choose another folder with --out.")
    elif (folder / JOURNAL).exists():
        raise UsageError(f"{folder} holds trials of an unknown study; choose another folder with --out.")
    write_text(marker, identity + "\n")


def _as_recipe(study: Study, recipe: Path, folder: Path, tuned: Sequence[Tuned]) -> str:
    """The methods of the study with the chosen options, as a study that extends it."""
    chosen = {item.label: item.best.options for item in tuned if item.best is not None}
    methods: list[Any] = []
    for _, label, name, options_given in study.method_items():
        options = {**options_given, **chosen.get(label, {})}
        methods.append({"name": name, "label": label, **options} if options or label != name else name)
    base = os.path.relpath(recipe.resolve(), folder.resolve())
    content = {"name": f"{study.name}-tuned", "extends": base, "methods": methods}
    head = (
        f"# `expunge tune {recipe.name}`: {study.tune.trials} trials per method, seeds {list(study.tune.seeds)},\n"
        f"# by the rule `{study.tune.rule}`, without a retrained model.\n"
    )
    return head + str(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True, width=120))


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise UsageError(f"tuning needs the extra `tune`: pip install 'expunge[tune]' ({error}).") from None
    return optuna
