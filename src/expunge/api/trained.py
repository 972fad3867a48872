"""A model with what it was trained on: what `train`, `unlearn` and `load` return and every other verb accepts."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from expunge.api.prepare import as_classifier, as_splits, check_fit, pick_device
from expunge.core import display
from expunge.core.errors import DataError, ExpungeError, UsageError
from expunge.core.files import write_text
from expunge.core.options import to_dict
from expunge.core.run import Run
from expunge.core.seeds import torch_generator
from expunge.core.version import versions
from expunge.data.split import Split
from expunge.methods.base import Method, make_method
from expunge.methods.ssd import Dampening
from expunge.models.checkpoint import save_state, save_weights, state_hash, weights_hash
from expunge.models.contract import plain_module
from expunge.models.external import config_of
from expunge.numerics.gradient_moments import Importance
from expunge.training.recipe import Recipe, make_recipe

WEIGHTS, RECORD, INITIAL, ROWS = "model.safetensors", "result.json", "initial.safetensors", "rows.json"
IMPORTANCE, PARENT = "importance.safetensors", "parent"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TrainedModel:
    """A module and what is known about its training. What is not known (None) is an error where it is needed.

    Attributes:
        model: The module; it returns logits (batch, classes). No verb changes it.
        train: What the model was trained on; of an unlearned model, what it still knows (the retained samples).
        held_out: Samples the model never saw, for methods that validate (`rewind`) and for tuning.
        test: Samples the model never saw, for measuring; no method reads them.
        recipe: How the model was trained.
        initial: The state dict that training started from.
        seed: The seed of the training.
        facts: JSON-ready provenance: kind, hashes of the data, options, versions.
        parent: The model that this one was made from by unlearning.
        given: The data that `train` was given, where a part of them was held out; rows are numbered in it.
        importance: How much each weight matters to the training data, computed once (`with_importance`), so that SSD
            needs the forget set alone.
    """

    model: nn.Module
    train: Split | None = None
    held_out: Split | None = None
    test: Split | None = None
    recipe: Recipe | None = None
    initial: Mapping[str, Tensor] | None = None
    seed: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    parent: TrainedModel | None = None
    given: Split | None = None
    importance: Importance | None = None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        *,
        data: Any = None,
        held_out: Any = None,
        test: Any = None,
        recipe: Recipe | Mapping[str, Any] | None = None,
        initial: Mapping[str, Tensor] | nn.Module | None = None,
        seed: int | None = None,
    ) -> TrainedModel:
        """What is known about a model that was trained elsewhere.

        Args:
            module: The trained module; it is kept, not copied.
            data: What it was trained on: a split, a map-style data set, or (X, y) with X (N, ...) and y (N,).
            held_out: Samples it never saw, for methods that validate; the same kinds.
            test: Samples it never saw, for measuring; the same kinds.
            recipe: How it was trained: a `Recipe` or a mapping of its options.
            initial: The weights training started from: a state dict or a module that holds them.
            seed: The seed of the training.

        Raises:
            UsageError: If `module` is no `nn.Module`, an option of the recipe is unknown, or `initial` does not fit.
            DataError: If data and model do not fit together, or unseen samples are among the training data.
        """
        if not isinstance(module, nn.Module):
            raise UsageError(f"module must be a torch.nn.Module, got {type(module).__name__}.")
        splits = as_splits({"train": data, "validation": held_out, "test": test})
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        check_fit(as_classifier(plain_module(module), splits, device)[0], splits, device)
        check_unseen(splits)
        start = initial_state(initial, module)
        return TrainedModel(
            model=module,
            train=splits.get("train"),
            held_out=splits.get("validation"),
            test=splits.get("test"),
            recipe=None if recipe is None else make_recipe(recipe),
            initial=start,
            seed=seed,
            facts={
                "kind": "given",
                "recipe": None if recipe is None else to_dict(make_recipe(recipe)),
                "seed": seed,
                "data": {name: split.content_hash() for name, split in splits.items()},
                "sizes": {name: len(split) for name, split in splits.items()},
                "start": None if start is None else state_hash(start),
                "versions": versions(),
            },
        )

    @property
    def origin(self) -> Split | None:
        """The data that the first model of the chain was given: rows are numbered in it, also after forgetting."""
        if self.parent is not None and self.train is not None and self.parent.train is not None:
            before = self.parent.origin
            if before is not None and same_data(before, self.train):
                return before
        return self.train if self.given is None else self.given

    @property
    def root(self) -> TrainedModel:
        """The first model of the chain, which no unlearning made."""
        return self if self.parent is None else self.parent.root

    def with_importance(self, method: str | Method = "ssd", *, seed: int = 0, device: str = "auto") -> Self:
        """The same model with the importance of its training data, for `importance=stored` of the SSD family.

        Args:
            method: Which of the family, "ssd" or "lfssd/det", or an instance: loss, unit and batches are its own.
            seed: Of the order of the batches.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.

        Raises:
            UsageError: If the method keeps no importance, or the training data are not known.
        """
        chosen = make_method(method)
        if not isinstance(chosen, Dampening):
            raise UsageError(f"{chosen.card.name} has no importance to keep; name ssd, assd, lfssd or potion.")
        if self.train is None:
            raise UsageError("the importance is one of the training data, which are not known; pass data=... .")
        target = pick_device(device)
        module = as_classifier(self.model, {"train": self.train}, target)[0]
        twin = copy.deepcopy(module).to(target)
        run = Run(seed=seed, device=target, label="importance")
        return replace(self, importance=chosen.measure(twin, self.train, run, weights_hash(self.model)))

    def record(self) -> dict[str, Any]:
        """JSON-ready: all but the weights and the data."""
        kept: dict[str, Any] = {} if self.importance is None else {"importance": self.importance.facts()}
        known = {"train": self.origin, "held_out": self.held_out, "test": self.test}
        sources = {name: _source(split) for name, split in known.items() if split is not None}
        sources = {name: source for name, source in sources.items() if source is not None}
        kept |= {"sources": sources, "training_seed": self.seed}
        return {"format": 1, **self.facts, **kept, "weights": weights_hash(self.model)}

    def save(self, folder: str | Path, *, parents: bool = True) -> Path:
        """Write what `expunge.load` reads; each file appears whole or not at all.

        `model.safetensors`, `result.json`, the initial weights where they are known, and for an unlearned model the
        rows it forgot and no longer knows, and the models that it was made from, in `parent/`. Data are not written.
        Those that were read from a file or a catalogue (`load_pair`, `load_data`) are described, and `load` reads them
        again; arrays and data sets of your own must be given to `load` again as `data=`, which checks that they are
        the same. A network of Hugging Face gets its `config.json` as well, so that `from_pretrained` reads the folder.

        Args:
            folder: Made if it does not exist.
            parents: Whether to write the models that this one was made from, each with its weights.

        Raises:
            ExpungeError: If the folder cannot be written.
        """
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExpungeError(f"cannot write to {target} ({error.strerror}); choose another folder.") from None
        save_weights(self.model, target / WEIGHTS)
        for stale in (INITIAL, ROWS, IMPORTANCE):
            (target / stale).unlink(missing_ok=True)
        if self.initial is not None:
            save_state(self.initial, target / INITIAL)
        if self.importance is not None:
            save_state(self.importance.values, target / IMPORTANCE)
        rows = self._rows()
        if rows is not None:
            write_text(target / ROWS, json.dumps(rows) + "\n")
        shutil.rmtree(target / PARENT, ignore_errors=True)
        if parents and self.parent is not None:
            self.parent.save(target / PARENT)
        config = config_of(self.model)
        if config is not None:
            write_text(target / "config.json", config)
        self._write_more(target)
        write_text(target / RECORD, json.dumps(self.record(), indent=2, default=str) + "\n")
        return target

    def _write_more(self, folder: Path) -> None:
        """Files of a subclass, written before the record that makes the folder complete."""

    def _rows(self) -> dict[str, Any] | None:
        """Which rows of the first training data this model no longer knows; None where that cannot be said."""
        origin = self.origin
        if origin is None or self.train is None or origin is self.train:
            return None
        rows = {"without": ~torch.isin(origin.index, self.train.index)}
        if self.held_out is not None and self.held_out.store is origin.store:
            rows["held_out"] = torch.isin(origin.index, self.held_out.index)
        return {"origin": origin.content_hash(), **{k: v.nonzero().flatten().tolist() for k, v in rows.items()}}

    def _shown(self) -> list[tuple[str, str]]:
        """Names and values that `repr` shows."""
        known = [
            ("trained on", self._trained_on()),
            ("held out", _described(self.held_out)),
            ("test", _described(self.test)),
        ]
        recipe = self.recipe
        if recipe is not None:
            words = f"{display.counted(recipe.epochs, 'epoch')} of {recipe.optimizer}, lr {recipe.lr:g}, "
            known.append(("recipe", words + f"batches of {recipe.batch_size}"))
        else:
            known.append(("recipe", "not known"))
        known.append(("initial weights", "known" if self.initial is not None else "not known"))
        return known

    def _trained_on(self) -> str:
        sizes = self.facts.get("sizes") or {}
        count = sizes.get("train", sizes.get("retain"))
        if self.train is None and count:
            return f"{display.counted(count, 'sample')}, which the folder does not hold: expunge.load(..., data=...)"
        return _described(self.train)

    def _title(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        return f"{type(self).__name__}: {type(self.model).__name__}, {display.counted(parameters, 'parameter')}"

    def __repr__(self) -> str:
        return display.as_text(self._title(), self._shown())

    def _repr_html_(self) -> str:
        return display.as_html(self._title(), self._shown())


def _source(split: Split) -> dict[str, Any] | None:
    """How `load_data` reads a split again; None for arrays, data sets of the caller, and parts of a store."""
    source = split.store.source
    whole = len(split) == len(split.store) and torch.equal(split.index.cpu(), torch.arange(len(split)))
    if source is None or not whole or split.content_hash() != Split.whole(split.store).content_hash():  # own labels
        return None
    path = Path(source["spec"])
    spec = str(path.absolute()) if path.exists() else source["spec"]
    return {**source, "spec": spec, "hash": split.content_hash()}


def _described(split: Split | None) -> str:
    return "not known" if split is None else f"{display.counted(len(split), 'sample')}, {split.num_classes} classes"


def same_data(one: Split, other: Split) -> bool:
    """Whether positions mean the same samples in both: one store, or two of equal content (classes may be widened)."""
    if one.store is other.store:
        return True
    alike = len(one.store) == len(other.store) and one.input_shape == other.input_shape
    return alike and one.store.content_hash() == other.store.content_hash()


def hold_out(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """A random part is kept out of training: (the rest, the part), both in ascending order.

    Args:
        train: The split to divide.
        fraction: Of its samples, between 0 and 1, truncated to whole samples.
        seed: Of the draw.

    Raises:
        DataError: If one side would be empty.
    """
    count = int(fraction * len(train))
    if not 0 < count < len(train):
        raise DataError(
            f"`holdout` {fraction:g} of {len(train)} samples leaves one side empty; choose another fraction."
        )
    order = torch.randperm(len(train), generator=torch_generator(seed, "holdout"))
    held, kept = order[:count].sort().values, order[count:].sort().values
    return train.take(train.index[kept]), train.take(train.index[held], "validation")


def check_unseen(splits: Mapping[str, Split]) -> None:
    """Refuse `validation` and `test` splits that show rows of `train`.

    Raises:
        DataError: If a row of one store is in both.
    """
    train = splits.get("train")
    for name in ("validation", "test"):
        other = splits.get(name)
        if train is None or other is None or other.store is not train.store:
            continue
        count = int(torch.isin(other.index, train.index).sum())
        if count:
            what = "held_out" if name == "validation" else name
            raise DataError(f"{count} samples of `{what}` are among the training data; give samples it never saw.")


def initial_state(given: Mapping[str, Tensor] | nn.Module | None, model: nn.Module) -> dict[str, Tensor] | None:
    """A state dict that fits `model`, on the CPU and independent of `given`.

    Raises:
        UsageError: If names or shapes are not those of the model.
    """
    if given is None:
        return None
    state = given.state_dict() if isinstance(given, nn.Module) else given
    own = model.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"initial must be a state dict or a torch.nn.Module, got {type(given).__name__}.")
    odd = [
        name for name in [*own, *state] if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if odd:
        raise UsageError(
            f"the initial weights do not fit the model (`{odd[0]}`); pass those its training started from."
        )
    return {name: value.detach().cpu().clone() for name, value in state.items()}
