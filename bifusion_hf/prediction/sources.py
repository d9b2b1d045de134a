"""Where the frames of a prediction in shards come from: a data set, or a folder of recordings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..batch import cut, shard_names
from ..data.frame_table import FrameTable
from ..data.frames import RGBDFrame, frame_from_row
from ..data.recordings import Recording, open_recording
from ..io.files import DataFileError
from ..io.storage import Folder


# What in a folder of recordings is one, beside folders.
_FILES = (".sens", ".r3d")


class Piece(NamedTuple):
    """Frames of a shard.

    Args:
        part: Name of the recording; empty for a data set.
        start: Number of the first one in it.
        stop: Number after the last one; None = up to the end.
    """

    part: str
    start: int
    stop: int | None


class BrokenFrame(NamedTuple):
    """A frame that cannot be used.

    Args:
        frame_id: Its name.
        reason: The whole message.
    """

    frame_id: str
    reason: str


class FrameSource(Protocol):
    """Where frames come from. It goes to other processes."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    def shards(self, size: int) -> dict[str, Piece]:
        """The pieces, of `size` frames each, by the name of their shard."""
        ...

    def frames(self, piece: Piece) -> Iterator[tuple[int, RGBDFrame | BrokenFrame]]:
        """Number and frame of each frame of a piece."""
        ...


@dataclass(frozen=True)
class DataSetFrames:
    """The rows of a data set; a frame's number is its row's.

    Args:
        source: Of `FrameTable`.
        split: Of `FrameTable`.
    """

    source: str
    split: str

    @property
    def name(self) -> str:
        """What the user called it."""
        return f"{self.source} {self.split}"

    @cached_property
    def _table(self) -> FrameTable:
        return FrameTable(self.source, self.split)

    def shards(self, size: int) -> dict[str, Piece]:
        """See `FrameSource`."""
        pieces = [Piece("", piece[0], piece[-1] + 1) for piece in cut(range(len(self._table)), size)]
        return dict(zip(shard_names(self.split, len(pieces)), pieces, strict=True))

    def frames(self, piece: Piece) -> Iterator[tuple[int, RGBDFrame | BrokenFrame]]:
        """See `FrameSource`."""
        for number, row in enumerate(self._table.rows(piece.start, piece.stop), piece.start):
            try:
                # The labels are for evaluation.
                yield number, frame_from_row({**row, "instance": None, "semantic": None})
            except (ValueError, TypeError, OSError) as error:
                yield number, BrokenFrame(str(row.get("frame_id") or f"row {number}"), str(error))


@dataclass(frozen=True)
class RecordingFrames:
    """The frames of all recordings in a folder; a frame's number is that in its recording.

    A shard is of one recording. In a store a recording is a shard: to count its frames it would have to be copied.

    Args:
        folder: The folder, or its address.
        options: Of `open_recording`.
    """

    folder: str | Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the user called it."""
        return str(self.folder)

    def shards(self, size: int) -> dict[str, Piece]:
        """See `FrameSource`.

        Raises:
            DataFileError: The folder has no recording, or something in it is none.
        """
        folder, pieces = Folder(self.folder), []
        for name in folder.names("*", folders=True):
            if "." in name and folder.is_file(name) and not name.lower().endswith(_FILES):
                continue
            if folder.path is None:
                pieces.append(Piece(name, 0, None))
                continue
            count = len(self._open(name))
            pieces += [Piece(name, piece[0], piece[-1] + 1) for piece in cut(range(count), size)]
        if not pieces:
            raise DataFileError(self.folder, "holds no recording; expected a folder, a .sens or a .r3d for each")
        return dict(zip(shard_names("recordings", len(pieces)), pieces, strict=True))

    def frames(self, piece: Piece) -> Iterator[tuple[int, RGBDFrame | BrokenFrame]]:
        """See `FrameSource`."""
        recording = self._open(piece.part)
        for number in range(piece.start, len(recording) if piece.stop is None else piece.stop):
            name = f"{piece.part}/{recording.ids[number]}"
            try:
                frame = recording[number]
                frame.frame_id = name
                yield number, frame
            except ValueError as error:
                yield number, BrokenFrame(name, str(error))

    def _open(self, name: str) -> Recording:
        # Shards of one recording follow each other.
        return _recording(Folder(self.folder).place(name), tuple(sorted(self.options.items())))


@lru_cache(maxsize=1)
def _recording(place: str | Path, options: tuple[tuple[str, Any], ...]) -> Recording:
    return open_recording(place, **dict(options))
