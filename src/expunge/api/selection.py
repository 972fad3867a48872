"""From what a caller says is to be forgotten to two splits: the samples to forget, and those to retain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.api.result import Result
from expunge.api.trained import TrainedModel, same_data
from expunge.core.errors import DataError, UsageError
from expunge.data.convert import as_split
from expunge.data.ids import rows_by_id
from expunge.data.split import Split
from expunge.scenarios.base import ForgetSplit, parse_scenario

WAYS = "rows of the training data, a boolean mask, expunge.ids([...]), a scenario such as 'class:3', or data"


@dataclass(frozen=True)
class Ids:
    """Sample ids, as opposed to row numbers."""

    values: tuple[str, ...]


def ids(values: Sequence[Any]) -> Ids:
    """Select samples by id: `expunge.unlearn(trained, forget=expunge.ids(["a17", "b3"]))`.

    Args:
        values: Ids as the training data have them (`split.ids`), compared by the rule of `expunge.data.values`.

    Raises:
        UsageError: If `values` is a single text or empty.
    """
    if isinstance(values, (str, bytes)):
        raise UsageError(f"ids takes a list, got the text {values!r}; write expunge.ids([{values!r}]).")
    chosen = tuple(str(value) for value in values)
    if not chosen:
        raise UsageError("ids got an empty list; name at least one id.")
    return Ids(chosen)


@dataclass(frozen=True)
class Selection:
    """forget, retain: what is to be forgotten and kept; None where unknown. forgetting: the scenario it came from."""

    forget: Split | None
    retain: Split | None
    forgetting: ForgetSplit | None = None


def select(trained: TrainedModel, forget: Any, retain: Any = None) -> Selection:
    """Resolve `forget` and `retain` of any verb.

    Args:
        trained: The model that is to forget. Where its training data are known, what is retained is computed: trained
            on and not forgotten.
        forget: Row numbers of the training data (of the first model of a chain, so that a number means the same sample
            before and after forgetting); a boolean mask over these rows; `ids([...])`; the text of a scenario, drawn
            with seed 0; what `expunge.scenario` returns; or data: a split, a map-style data set, (X, y). A list of 0
            and 1 is row numbers, never a mask: as such it repeats rows and is refused.
        retain: Data to retain; default: computed, or those of the scenario.

    Raises:
        UsageError: For a selection that cannot be understood, or that needs training data which are not known.
        DataError: For rows, masks or ids that do not fit the training data.
    """
    given = None if retain is None else as_split(retain, name="retain")
    if isinstance(forget, ForgetSplit):
        return _from_scenario(trained, forget, given)
    if isinstance(forget, str):
        scenario = parse_scenario(forget)
        known = _known(trained, f"the scenario `{forget}`")
        made = scenario.split(known, 0)
        if made.train.labels is not known.labels:
            raise UsageError(
                f"`{forget}` changes labels before training; split first with expunge.scenario(...), train on its "
                "`.train`, and pass the split."
            )
        return _from_scenario(trained, made, given)
    rows = _row_numbers(forget)
    if rows is None and not isinstance(forget, Ids):
        if forget is None:
            return Selection(None, given)
        chosen = as_split(forget, name="forget")
        return Selection(chosen, given if given is not None else _rest(trained, chosen))
    known = _known(trained, "a selection by ids" if rows is None else "a selection by rows")
    origin = trained.origin
    assert origin is not None  # noqa: S101  # the training data are known
    if rows is None:
        positions = rows_by_id(list(forget.values), origin.named("the training data"))
    else:
        positions = origin.index[_checked_rows(rows, origin)]
    gone = ~torch.isin(positions, known.index)
    if bool(gone.any()):
        raise DataError(
            f"{int(gone.sum())} of the {len(positions)} samples to forget were held out or forgotten before (first: "
            f"row {int((origin.index == positions[gone][0]).nonzero()[0])}); leave them out."
        )
    chosen = known.take(positions, "forget")
    return Selection(chosen, given if given is not None else _rest(trained, chosen))


def _from_scenario(trained: TrainedModel, forgetting: ForgetSplit, retain: Split | None) -> Selection:
    known = trained.train
    if known is None:
        return Selection(forgetting.forget, retain or forgetting.retain, forgetting)
    if not same_data(known, forgetting.train):
        raise DataError(
            "the scenario splits other data than the model was trained on; make it of the data given to train()."
        )
    forget = _within(trained, forgetting.forget)
    if known.has_labels and forgetting.forget.has_labels and not torch.equal(forget.y, forgetting.forget.y):
        raise DataError(
            f"{forgetting.scenario.card.name} changed labels, but the model was trained on others; train it on the "
            "`.train` of the split."
        )
    return Selection(forget, retain if retain is not None else _rest(trained, forget), forgetting)


def _within(trained: TrainedModel, chosen: Split) -> Split:
    """The same samples of what the model was trained on, which must hold them."""
    known = trained.train
    assert known is not None  # noqa: S101  # callers have looked
    outside = int((~torch.isin(chosen.index, known.index)).sum())
    if outside:
        why = "were forgotten before or never trained on" if trained.parent is not None else "were never trained on"
        raise DataError(f"{outside} of the {len(chosen)} samples to forget {why}; leave them out.")
    return known.take(chosen.index, "forget")


def _rest(trained: TrainedModel, forget: Split) -> Split | None:
    """What the model was trained on and does not forget; None where that is not known."""
    known = trained.train
    if known is None or not same_data(known, forget):
        return None
    _within(trained, forget)
    kept = known.index[~torch.isin(known.index, forget.index)]
    if not len(kept):
        raise DataError(f"this forgets all {len(known)} samples the model was trained on; keep at least one to retain.")
    return known.take(kept, "retain")


def _known(trained: TrainedModel, what: str) -> Split:
    if trained.train is None:
        raise UsageError(
            f"{what} needs the data the model was trained on; pass what expunge.train returned, or "
            "expunge.TrainedModel.of(module, data=...)."
        )
    return trained.train


def _row_numbers(forget: Any) -> np.ndarray | None:
    """A one-dimensional array of numbers or truth values; None if `forget` is something else, such as data."""
    if isinstance(forget, (bool, int, float, np.generic)) and not isinstance(forget, np.ndarray):
        raise UsageError(f"forget={forget!r} could be a row or a class; write [{forget}] or 'class:{forget}'.")
    if isinstance(forget, (Split, Ids)) or forget is None:
        return None
    if isinstance(forget, (set, frozenset)):
        forget = sorted(forget)
    if isinstance(forget, Tensor):
        values = forget.detach().cpu().numpy()
    elif isinstance(forget, (list, tuple, range)) and all(_plain(value) for value in forget):
        if len({isinstance(value, (bool, np.bool_)) for value in forget}) > 1:
            raise UsageError("forget mixes truth values and numbers; pass a boolean mask or row numbers.")
        values = np.asarray(forget)
    elif hasattr(forget, "__array__"):
        values = np.asarray(forget)
    else:
        return None
    if values.ndim != 1:
        raise UsageError(f"forget is an array of shape {values.shape}; pass {WAYS} (X, y).")
    if values.size == 0:
        raise DataError(f"nothing to forget: forget is empty; pass {WAYS}.")
    if values.dtype.kind not in "biu":
        example = values[0].item() if hasattr(values[0], "item") else values[0]
        hint = "expunge.ids([...]) selects by id" if values.dtype.kind in "USO" else "rows are whole numbers"
        raise UsageError(f"forget cannot select by values such as {example!r}; {hint}.")
    return values


def _plain(value: Any) -> bool:
    """Whether this is one value and no sample."""
    return isinstance(value, (bool, int, float, str, np.generic)) or getattr(value, "ndim", None) == 0


def _checked_rows(values: np.ndarray, origin: Split) -> Tensor:
    """Row numbers (k,) long, in the order given; of a mask, those that are true."""
    count = len(origin)
    if values.dtype.kind == "b":
        if len(values) != count:
            raise DataError(f"the mask has {len(values)} values, but the model was trained on {count} samples.")
        if not values.any():
            raise DataError("the mask selects no sample, so there is nothing to forget.")
        return torch.from_numpy(np.flatnonzero(values))
    outside = values[(values < 0) | (values >= count)]
    if len(outside):
        raise DataError(f"row {outside[0]} is not in the training data; rows are 0 to {count - 1}.")
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        masklike = len(values) == count and set(unique.tolist()) <= {0, 1}
        hint = "; for a mask pass truth values, e.g. numpy.asarray(mask, bool)" if masklike else "; name each once"
        raise DataError(f"row {unique[counts > 1][0]} is named {counts.max()} times{hint}.")
    return torch.from_numpy(values.astype(np.int64))


def known_splits(models: Sequence[TrainedModel], given: dict[str, Any]) -> dict[str, Any]:
    """Data for measuring: what is given, else what the models know of (`forget`, `retain`, `test`, `validation`).

    Raises:
        UsageError: If the models disagree about a split that is not given.
    """
    known: dict[str, Any] = dict(given)
    for name in ("forget", "retain", "test", "validation"):
        if known.get(name) is not None:
            continue
        splits = [split for split in (_of(model, name) for model in models) if split is not None]
        if any(not _same(split, splits[0]) for split in splits[1:]):
            raise UsageError(f"the models know different {name} data; pass {name}=... to say which is meant.")
        known[name] = splits[0] if splits else None
    return known


def _of(model: TrainedModel, name: str) -> Split | None:
    if name == "test":
        return model.test
    if name == "validation":
        return model.held_out
    if not isinstance(model, Result) or model.forget is None:
        return None
    return model.forget if name == "forget" else model.train


def _same(one: Split, other: Split) -> bool:
    return same_data(one, other) and torch.equal(one.index, other.index)
