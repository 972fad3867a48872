"""A workspace with its data and models: what `requests.settings` lays out, opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from expunge.core.errors import DataError, UsageError
from expunge.core.options import build
from expunge.data.sources import load_beside, load_pair
from expunge.data.split import Split
from expunge.evidence.explain import BY_CONSTRUCTION, FORGOTTEN
from expunge.evidence.verdict import Margins
from expunge.models.build import build_model
from expunge.models.checkpoint import load_weights, read_weights, weights_hash
from expunge.requests.settings import Layout, WorkspaceSettings
from expunge.requests.sharded import ensemble_like, recipe_of
from expunge.training.recipe import Recipe


@dataclass(frozen=True)
class Workspace(Layout):
    """A workspace whose model can be built and whose data can be read."""

    def checked(self) -> Self:
        """Raises `UsageError` for settings that their class refuses, or that do not go together."""
        super().checked()
        _ = self.recipe, self.margins
        for name in ("references", "shadows"):
            if self.settings.shards is not None and getattr(self.settings, name):
                raise UsageError(
                    f"settings: `{name}` are trained as one model, not in shards; leave it at 0: with `shards` the "
                    "unlearning is exact."
                )
        return self

    @property
    def recipe(self) -> Recipe | None:
        """How the model was trained; a sharded training says it itself."""
        if self.settings.shards is not None:
            return recipe_of(self.settings.shards)
        return build(Recipe, self.settings.recipe) if self.settings.recipe is not None else None

    @property
    def margins(self) -> Margins:
        return build(Margins, self.settings.margins)

    def accepts(self, word: str) -> bool:
        """Whether a verdict fulfils a request; an exact method is accepted where "forgotten" is."""
        return (FORGOTTEN if word == BY_CONSTRUCTION else word) in self.settings.accept

    def load(self) -> tuple[Split, Split]:
        """Training and test data as the settings name them. Raises `DataError` without unseen samples."""
        return load(self.settings)

    def fresh(self, data: Split) -> nn.Module:
        """The model without its weights; for a sharded training, that of one shard."""
        return build_model(
            self.settings.model,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
            options=self.settings.model_options,
        )

    def with_weights(self, data: Split, path: Path) -> nn.Module:
        """The model with the weights of a file."""
        shards = self.settings.shards
        if shards is None:
            return load_weights(self.fresh(data), path)
        return load_weights(ensemble_like(lambda: self.fresh(data), read_weights(path), shards), path)

    def build(self, data: Split, version: str) -> nn.Module:
        """The model of a version, whose content is checked against its name."""
        path = self.models / f"{version}.safetensors"
        if not path.is_file():
            raise DataError(f"the weights of version {version[:12]} are gone ({path}); they cannot be worked on.")
        model = self.with_weights(data, path)
        if weights_hash(model) != version:
            raise DataError(f"{path} was changed: its content is not what its name says; restore it from a backup.")
        return model


def load(settings: WorkspaceSettings) -> tuple[Split, Split]:
    """(training data, test data). Raises `DataError` where there are no unseen samples to audit with."""
    arguments: Mapping[str, Any] = settings.data_options
    train, test = load_pair(settings.data, **arguments)
    if settings.test is not None:
        test = load_beside(settings.test, train, **arguments)
    if test is None:
        raise DataError(f"{settings.data} has no test part, and an audit needs unseen samples; give them with `test`.")
    return train, test
