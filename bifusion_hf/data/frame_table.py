"""Rows of a data set of frames by their numbers, straight from its Parquet files, on a disk or in a store.

`load_frames` first brings a whole data set to this machine, which a worker that needs some thousand rows of it must
not. Here nothing is read but the files' ends, and then the row groups that the rows are in.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..io.files import DataFileError
from ..io.hub_files import refuse_nowhere, split_revision
from ..io.storage import Folder, is_remote, local_path


# Rows that are in memory at a time.
_BATCH = 16


class FrameTable:
    """The rows of a split; it goes to other processes.

    Args:
        source: As in `load_frames`, or the address (`io.storage`) of a folder with `data/{split}-*.parquet`; of the
            Hub's data sets too, those of that layout.
        split: `"train"`, `"val"`, ...

    Raises:
        DataFileError: There are no such files, or one is damaged.
        FileNotFoundError: The source is no folder and can be no id.
    """

    def __init__(self, source: str | Path, split: str):
        self.source, self.split = str(source), split
        self.folder = _folder_of(source)
        self.files = self.folder.names(f"data/{split}-*.parquet")
        if not self.files:
            raise DataFileError(self.folder.address, f"has no data/{split}-*.parquet")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_counts": self._counts}

    @cached_property
    def _counts(self) -> list[int]:
        """Rows of each file."""
        return [self._open(name).metadata.num_rows for name in self.files]

    def __len__(self) -> int:
        return sum(self._counts)

    def rows(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The rows from `start` to before `stop`, with encoded images, for `frame_from_row`.

        Raises:
            DataFileError: A file is damaged.
        """
        first = 0
        for name, count in zip(self.files, self._counts, strict=True):
            begin, end = max(start - first, 0), min(stop - first, count)
            if begin < end:
                yield from self._rows_of(name, begin, end)
            first += count

    def _rows_of(self, name: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        import pyarrow

        file = self._open(name)
        groups, place, position = [], 0, None
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if place < stop and place + count > start:
                position = place if position is None else position
                groups.append(group)
            place += count
        try:
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=groups):
                wanted = batch.slice(max(start - position, 0), max(stop - max(position, start), 0))
                yield from wanted.to_pylist()
                position += batch.num_rows
        except (OSError, pyarrow.ArrowException) as error:
            raise DataFileError(self.folder.place(name), f"cannot be read ({error})") from error

    def _open(self, name: str) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.folder.open(name), pre_buffer=self.folder.path is None)
        except pyarrow.ArrowException as error:
            raise DataFileError(self.folder.place(name), f"is no Parquet file ({error})") from error


def _folder_of(source: str | Path) -> Folder:
    if str(source) == "sample":
        from .. import assets

        return Folder(assets.SAMPLE_FRAMES)
    if is_remote(source) or local_path(source).is_dir():
        return Folder(source)
    repository, revision = split_revision(source)
    refuse_nowhere(repository, source, "frames")
    return Folder(f"hf://datasets/{repository}" + ("" if revision is None else f"@{revision}"))
