"""Predictions in shards until all are there: by several processes, and gone on with after a stop; then one file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch import Processes, check_settings, cut, shard_names
from ..io.atomic import delete_folder
from ..io.storage import Folder
from .predictions import PredictionFile, PredictionWriter


if TYPE_CHECKING:
    from ..processing_bifusion import BiFusionProcessor

_SHARDS = "shards"


def shard_folder(path: str | Path) -> Path:
    """Where the shards of a file of predictions are until it is whole."""
    path = Path(path)
    return path.with_name(f"{path.name}.shards")


def write_in_shards(
    path: str | Path,
    count: int,
    predict: Callable[[Sequence[int], PredictionWriter], None],
    processor: "BiFusionProcessor",
    semantic_names: Mapping[int, str] | None,
    settings: Mapping[str, Any],
    *,
    shard_size: int = 256,
    processes: Processes | None = None,
) -> None:
    """Writes a file of predictions, the same bytes whatever the number of processes and of stops.

    Args:
        path: The file, on a disk that all processes share.
        count: Number of frames.
        predict: Writes the predictions of frames by their rows.
        processor: Of `PredictionWriter`.
        semantic_names: Of `PredictionWriter`.
        settings: What decides the predictions, JSON values.
        shard_size: Frames of a shard: what a stop may cost.
        processes: Of the launch, among which the shards are shared.

    Raises:
        ValueError: Shards of other settings are there.
        FolderInUseError: Another run writes them.
    """
    processes = Processes() if processes is None else processes
    folder = Folder(shard_folder(path))
    pieces = cut(range(count), shard_size)
    names = shard_names("frames", len(pieces))
    rows = dict(zip(names, pieces, strict=True))

    def work(left: Sequence[str]) -> None:
        for name in processes.share(dict.fromkeys(left)):
            with PredictionWriter(folder.place(_name(name)), processor, semantic_names) as writer:
                predict(rows[name], writer)
        # A file is whole when all have come here.
        processes.gather(None)

    if not processes.is_main:
        work([])
        return
    with folder.sole_use():
        kept = {**settings, "frames": count, "shard_size": shard_size}
        check_settings(folder, "settings.json", kept, "predictions", _SHARDS)
        folder.remove_unfinished(_SHARDS)
        done = set(folder.names(f"{_SHARDS}/*.parquet"))
        work([name for name in names if _name(name) not in done])
        with PredictionWriter(path, processor, semantic_names) as writer:
            for name in names:
                for prediction in PredictionFile(folder.place(_name(name))):
                    writer.write(prediction)
    delete_folder(folder.path)


def _name(shard: str) -> str:
    return f"{_SHARDS}/{shard}.parquet"
