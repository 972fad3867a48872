"""IC-ERR and FGT-ERR on a confusion matrix filled by hand."""

from __future__ import annotations

import pytest
import torch

from expunge.core.errors import UsageError
from expunge.data.split import ResidentStore, Split
from expunge.metrics.base import Evaluation
from expunge.metrics.confusion import ConfusionErrors, pair_errors, swapped_classes


class Fixed(torch.nn.Module):
    """A model that answers with the class written in its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(x.flatten(1)[:, 0].long(), 4).float() * 9


def split(labels: list[int], said: list[int], shown: list[int] | None = None) -> Split:
    store = ResidentStore(torch.tensor(said).float().reshape(-1, 1), torch.tensor(labels), classes=list("abcd"))
    whole = Split.whole(store)
    return whole if shown is None else whole.with_labels(torch.tensor(shown))


# C over classes 0..3: row 0 = [5, 2, 1, 0], row 1 = [3, 4, 0, 0], row 2 = [1, 0, 6, 0]
LABELS = [0] * 8 + [1] * 7 + [2] * 7
SAID = [0] * 5 + [1] * 2 + [2] + [0] * 3 + [1] * 4 + [0] + [2] * 6


def test_errors_of_a_hand_made_matrix() -> None:
    found = pair_errors(torch.tensor(LABELS), torch.tensor(SAID), 0, 1)
    assert found == ((3 + 3) / 15, 2 + 3, 15)


def test_the_metric_finds_the_swapped_pair_and_reads_clean_labels() -> None:
    forget = split([0, 1, 1], [1, 0, 0], shown=[1, 0, 0])
    evaluation = Evaluation({"m": Fixed()}, {"forget": forget, "test": split(LABELS, SAID)})
    assert swapped_classes(evaluation) == (0, 1)
    values = {v.metric: v.value for v in ConfusionErrors().compute(evaluation, "m")}
    assert values == {"test_ic_error": 6 / 15, "test_fgt_error": 5 / 15, "test_fgt_count": 5}


@pytest.mark.parametrize("shown", [None, [1, 2, 0], [1, 1, 0]])
def test_no_pair_where_labels_were_not_swapped(shown: list[int] | None) -> None:
    evaluation = Evaluation({"m": Fixed()}, {"forget": split([0, 1, 1], [0, 0, 0], shown)})
    assert swapped_classes(evaluation) is None
    assert not ConfusionErrors().applies(evaluation)


def test_named_classes_count_without_a_swap_and_must_exist() -> None:
    evaluation = Evaluation({"m": Fixed()}, {"forget": split([2], [2]), "test": split(LABELS, SAID)})
    values = {v.metric: v.value for v in ConfusionErrors(classes=(1, 2)).compute(evaluation, "m")}
    assert values["test_ic_error"] == (3 + 1) / 14
    assert values["test_fgt_count"] == 0
    with pytest.raises(UsageError, match=r"0\.\.3"):
        ConfusionErrors(classes=(1, 7)).applies(evaluation)
