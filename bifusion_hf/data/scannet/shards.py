"""Writing a data set of frames as parquet shards: in parallel, resumable, with a report of what was left out.

A shard is the work of one process on some units (scans). It is written under another name and then renamed, and a
record of it is written after that, so a shard with a record is complete; after an interruption only the others are
made. A shard with a unit that failed is made anew as well, since the cause may have been mended.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ...batch import Engine, LocalEngine, Work, check_settings, cut, shard_names
from ...io.files import DataFileError
from ...io.storage import Folder
from ..frames import frame_features, sequence_features


# Rows of a row group: what a reader of a stream holds at a time.
ROW_GROUP = 50
# What workers have from the start.
PRELOAD = (__name__, "datasets.arrow_writer")
_WORK_FOLDER = ".preparation"


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that is left out.

    Args:
        frame_id: Its name.
        reason: In a word or two, the same for all frames of the kind.
        detail: The whole message.
    """

    frame_id: str
    reason: str
    detail: str


class FrameSource(Protocol):
    """Where the rows come from. It goes to worker processes, so it has to be picklable.

    Attributes: `sequences`, whether rows have the columns of `sequence_features()` or those of `frame_features()`.
    """

    sequences: bool

    def rows(self, unit: str) -> Iterator[dict[str, Any] | SkippedFrame | str]:
        """Rows of a unit, its skipped frames, and notes on the unit (text, counted).

        Raises:
            DataFileError: The unit cannot be read.
        """
        ...


@dataclass
class ShardRecord:
    """What became of the units of a shard.

    Args:
        units: Their names.
        frames: Number of frames written.
        skipped: The frames left out.
        failed: Message by the name of each unit that could not be read.
        notes: Number of units by note.
    """

    units: list[str]
    frames: int = 0
    skipped: list[SkippedFrame] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, other: "ShardRecord") -> None:
        """Adds the record of another shard."""
        self.units += other.units
        self.frames += other.frames
        self.skipped += other.skipped
        self.failed |= other.failed
        self.notes = dict(Counter(self.notes) + Counter(other.notes))

    @classmethod
    def load(cls, text: str) -> "ShardRecord":
        """The record that a file holds."""
        values = json.loads(text)
        return cls(**{**values, "skipped": [SkippedFrame(**item) for item in values["skipped"]]})


def write_shards(
    source: FrameSource,
    splits: Mapping[str, Sequence[str]],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    units_per_shard: int = 16,
    workers: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
    unit: str = "scan",
    beside: Mapping[str, str] | None = None,
) -> dict[str, ShardRecord]:
    """Writes `data/{split}-{i:05d}-of-{n:05d}.parquet` for the units of each split.

    Args:
        source: Reads the units.
        splits: Names of the units by split.
        out: Folder of the data set, or its address (`io.storage`); a shard that is complete there is kept.
        settings: All that the content depends on beside the files, as JSON values.
        units_per_shard: Units of a shard. An interruption loses at most one shard of work for each worker.
        workers: Number of processes of this machine.
        engine: Makes the shards in place of those processes.
        progress: Show a progress bar over the units.
        unit: What a unit is, for the bar.
        beside: Text files that belong to the shards, by name; there before the first shard is.

    Returns:
        The record of each split.

    Raises:
        ValueError: The folder holds a data set of other settings or other units, or an argument is malformed.
    """
    if units_per_shard < 1 or workers < 1:
        raise ValueError(f"units_per_shard is {units_per_shard} and workers {workers}; expected at least 1")
    folder = Folder(out)
    settings = {**settings, "units_per_shard": units_per_shard, "splits": splits}
    check_settings(folder, f"{_WORK_FOLDER}/settings.json", settings, "a data set", "data")
    for name in ("data", _WORK_FOLDER):
        folder.remove_unfinished(name)
    for name, text in (beside or {}).items():
        folder.write_text(name, text)

    names, units_of = {}, {}
    for split, units in splits.items():
        groups = cut(units, units_per_shard)
        names[split] = shard_names(split, len(groups))
        units_of.update(zip(names[split], map(list, groups), strict=True))
    complete = _complete_shards(folder)
    jobs = {name: units for name, units in units_of.items() if name not in complete}
    engine = LocalEngine(workers, PRELOAD) if engine is None else engine
    total = sum(map(len, units_of.values()))
    with tqdm(total=total, unit=unit, disable=not progress) as bar:
        bar.update(total - sum(map(len, jobs.values())))
        for name, _ in engine.run(partial(_writing, source, folder), jobs):
            bar.update(len(jobs[name]))
    # Of workers that were killed.
    for name in ("data", _WORK_FOLDER):
        folder.remove_unfinished(name)

    records = {}
    for split in splits:
        records[split] = ShardRecord([])
        for name in names[split]:
            records[split].add(_load_record(folder, name))
    return records


def _writing(source: FrameSource, folder: Folder) -> Work:
    """What a worker calls for each shard."""

    def work(name: str, units: Iterable[str]) -> None:
        write_shard(source, units, folder, name)

    return work


def write_shard(source: FrameSource, units: Iterable[str], folder: Folder, name: str) -> None:
    """Writes one shard and its record.

    Args:
        source: Reads the units.
        units: Their names.
        folder: Of the data set.
        name: Of the shard, without suffix.
    """
    from datasets.arrow_writer import ParquetWriter

    record = ShardRecord(list(units))
    notes: Counter[str] = Counter()
    features = sequence_features() if source.sequences else frame_features()
    with (
        folder.new_file(f"data/{name}.parquet") as path,
        ParquetWriter(path=str(path), features=features, writer_batch_size=ROW_GROUP) as writer,
    ):
        for unit in record.units:
            try:
                for item in source.rows(unit):
                    if isinstance(item, SkippedFrame):
                        record.skipped.append(item)
                    elif isinstance(item, str):
                        notes[item] += 1
                    else:
                        writer.write(item)
                        record.frames += 1
            except DataFileError as error:
                record.failed[unit] = str(error)
        writer.finalize()
    record.notes = dict(notes)
    folder.write_text(_record_name(name), json.dumps(asdict(record), indent=1))


def _record_name(name: str) -> str:
    return f"{_WORK_FOLDER}/{name}.json"


def _load_record(folder: Folder, name: str) -> ShardRecord:
    return ShardRecord.load(folder.read_text(_record_name(name)))


def _complete_shards(folder: Folder) -> set[str]:
    """Names of the shards that are there with a record, and without a unit that failed."""
    shards = {Path(name).stem for name in folder.names("data/*.parquet")}
    recorded = {Path(name).stem for name in folder.names(f"{_WORK_FOLDER}/*-of-*.json")}
    return {name for name in shards & recorded if not _load_record(folder, name).failed}
