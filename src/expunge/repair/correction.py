"""A training set with suspected labels, and what is to become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from expunge.core import distributed
from expunge.core.errors import UsageError, unknown
from expunge.data.split import Split
from expunge.methods.base import Method
from expunge.repair.suspects import Suspects

Action = Literal["forget", "relabel"]
NONE = "none"  # the method that skips unlearning, for `relabel`


@dataclass(frozen=True, eq=False)
class Correction:
    """A training set and what is to become of it.

    doubtful: the suspects with their given labels. trusted: all other samples. corrected: `trusted` and, for
    `relabel`, the suspects with their suggested labels, in the order of the data.
    """

    train: Split
    suspects: Suspects
    action: Action

    @property
    def doubtful(self) -> Split:
        """The suspects, as the forget split."""
        return self.train.take(self.suspects.positions, "forget")

    @property
    def trusted(self) -> Split:
        """All other training samples, as the retain split."""
        return self.train.take(self.train.index[~self._in(self.suspects.positions)], "retain")

    @property
    def relabelled(self) -> Tensor:
        """Bool (n,): suspects that stay in the data, with another label."""
        return self.suspects.relabelled if self.action == "relabel" else torch.zeros_like(self.suspects.relabelled)

    @property
    def corrected(self) -> Split:
        """The training samples with the suggested labels; suspects without one are left out."""
        labels = (self.train.labels if self.train.labels is not None else self.train.store.labels).clone()
        relabelled = self.relabelled
        labels[self.suspects.positions[relabelled]] = self.suspects.suggested[relabelled]
        dropped = self._in(self.suspects.positions[~relabelled])
        return self.train.with_labels(labels).take(self.train.index[~dropped], "corrected")

    def frame(self) -> pd.DataFrame:
        """One row per training sample: id, position, given, now (empty where forgotten), action.

        `given_class` and `now_class` are the names of the classes; the ids are those of the data, so that the table can
        be joined with the file that it came from.
        """
        table = pd.DataFrame(
            {
                "id": self.train.ids,
                "position": self.train.index.numpy(),
                "given": self.train.y.numpy(),
                "now": pd.array(self.train.y.numpy(), dtype="Int64"),
                "action": "kept",
            }
        )
        for chosen, action in ((~self.relabelled, "forgotten"), (self.relabelled, "relabelled")):
            rows = table["position"].isin(self.suspects.positions[chosen].tolist())
            table.loc[rows, "action"] = action
        table.loc[table["action"] == "forgotten", "now"] = pd.NA
        moved = dict(zip(self.suspects.positions.tolist(), self.suspects.suggested.tolist(), strict=True))
        relabelled = table["action"] == "relabelled"
        table.loc[relabelled, "now"] = table.loc[relabelled, "position"].map(moved).astype("Int64")
        names = dict(enumerate(self.train.store.classes))
        table.insert(3, "given_class", table["given"].map(names))
        table.insert(5, "now_class", table["now"].map(names))
        return table

    def _in(self, positions: Tensor) -> Tensor:
        return torch.isin(self.train.index, positions)


def make_correction(train: Split, suspects: Suspects, action: Action, method: str | Method) -> Correction:
    """Checked: `UsageError` for an unknown action, or one that would do nothing."""
    if action not in get_args(Action):
        raise unknown("action", action, get_args(Action))
    if action == "relabel" and not bool(suspects.relabelled.any()):
        raise UsageError(
            "no suspect has a suggested label, so there is nothing to relabel; give the list a column "
            "`suggested_label`, or choose the action `forget`."
        )
    if action == "forget" and method == NONE:
        raise UsageError('method "none" would change nothing; choose a method, or the action `relabel`.')
    if distributed.current().size > 1:
        raise UsageError("a label repair is the work of one process; run it without torchrun.")
    return Correction(train, suspects, action)
