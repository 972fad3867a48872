"""Data sets of the Hugging Face Hub, through the package `datasets` (extra `hub`), imported on use."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.core.errors import DataError, UsageError
from expunge.data.cache import file_hash
from expunge.data.folder import read_folder
from expunge.data.parts import Part, part_of
from expunge.data.raw import Columns, Raw
from expunge.data.table import ColumnImages, image_column, raws_from_table

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def read_hub(
    hub: str, config: str | None, columns: Columns, train: str = "train", test: str | None = None
) -> dict[str, Raw]:
    """Read the parts of a Hub data set, from the network or from an earlier download.

    Args:
        hub: its id.
        config: its configuration, or None.
        columns: column names that the caller chose.
        train: name of the training split.
        test: name of the test split; None: recognised by its name.

    Raises:
        UsageError: without the package `datasets`.
        DataError: if the data set cannot be loaded or has no training split.
    """
    try:
        import datasets
    except ImportError:
        raise UsageError(f"reading {hub} needs the package `datasets`: pip install expunge[hub].") from None
    try:
        with _network_as_it_is(hub):
            loaded = datasets.load_dataset(hub, config)
    except (OSError, ValueError, RuntimeError) as error:
        snapshot = _snapshot(hub)
        if snapshot is not None:
            log.info("%s is read from the downloaded snapshot %s.", hub, snapshot)
            folder = snapshot / config if config and (snapshot / config).is_dir() else snapshot
            named: dict[str, Part] = {train: "train", **({test: "test"} if test else {})}
            return read_folder(folder, columns, named=named)
        raise _explain(hub, config, error) from None
    parts: dict[str, Raw] = {}
    for part, wanted in (("train", train), ("test", test), ("validation", None)):
        others = [name for name in loaded if name not in (train, test) and part_of(name) == part]
        names = [name for name in loaded if name == wanted] or others
        if len(names) > 1:
            raise DataError(f"{hub} has several {part} splits ({', '.join(names)}); pass one of them from Python.")
        if names:
            parts[part] = raw_from_hub(loaded[names[0]], part, columns, hub, roots=_cache_folders(hub))
    if "train" not in parts:
        raise DataError(f"{hub} has no train split; it has: {', '.join(loaded)}.")
    return parts


def raw_from_hub(
    data: Any, split: str, columns: Columns, name: str, *, keep: bool = True, roots: Sequence[Path] | None = None
) -> Raw:
    """Convert a `datasets.Dataset` (also filtered or shuffled) to `Raw`; images remain encoded.

    Args:
        data: the data set.
        split: name of the part.
        columns: column names that the caller chose.
        name: for messages.
        keep: whether decoded images are cached; not for the many small subsets that a program may create.
        roots: folders below which files named by rows must be; None: any, for a data set that the caller made.
    """
    schema: pa.Schema = data.features.arrow_schema
    plain = data.with_format("arrow")

    def where(row: int) -> str:
        return f"{name} ({split}), row {row}"

    image = image_column(schema, columns.image, name, lambda column: _first(plain, column))
    light = plain.select_columns([column for column in schema.names if column != image])[:]
    if image is None:
        return raws_from_table(light, schema, columns, split, where)[split]
    images = ColumnImages(lambda: plain.select_columns([image])[:].column(0), len(data), where, roots)
    # The fingerprint identifies content and all transforms, so it can key the cache of decoded images.
    fingerprint = f"{data._fingerprint}-{len(data)}"

    def key(facts: object, cache: Path) -> str:
        return _key(fingerprint, image, [facts, [file_hash(file) for file in images.named_files()]])

    return raws_from_table(light, schema, columns, split, where, images=images, key=key if keep else None)[split]


def _cache_folders(hub: str) -> list[Path]:
    """Download folders of the libraries, the only folders whose files may be named by rows of a Hub data set."""
    import datasets
    from huggingface_hub import constants

    places = [
        datasets.config.DOWNLOADED_DATASETS_PATH,
        datasets.config.EXTRACTED_DATASETS_PATH,
        datasets.config.HF_DATASETS_CACHE,
        constants.HF_HUB_CACHE,
    ]
    return [*([Path(hub)] if Path(hub).is_dir() else []), *(Path(place) for place in places)]


def _first(plain: Any, column: str) -> object:
    return plain.select_columns([column])[:1].column(0)[0].as_py() if len(plain) else None


@contextmanager
def _network_as_it_is(hub: str) -> Iterator[None]:
    """Without a network, switch the libraries to offline mode, instead of retrying for a minute."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    try:
        huggingface_hub.HfApi().dataset_info(hub, timeout=10)
        offline = False
    except Exception as error:  # noqa: BLE001 - whatever is not about the network will be explained by loading
        offline = type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError", "OfflineModeIsEnabled")
    places: tuple[Any, ...] = (datasets.config, constants) if offline else ()
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _key(fingerprint: str, image: str, facts: object) -> str:
    return hashlib.sha256(json.dumps(["hub", fingerprint, image, facts], default=str).encode()).hexdigest()


def _snapshot(hub: str) -> Path | None:
    """The folder of an earlier download, which `load_dataset` does not find without a network."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return None


def _explain(hub: str, config: str | None, error: Exception) -> DataError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if isinstance(error, ConnectionError) or "offline" in reason.lower():
        return DataError(
            f"the Hub cannot be reached for {hub} and it was not downloaded before; pass a local folder with its "
            "parquet files instead, for example --data path/to/folder."
        )
    variant = f" (config {config})" if config else ""
    return DataError(f"{hub}{variant} cannot be loaded: {reason}; check the id, or pass a local folder.")
