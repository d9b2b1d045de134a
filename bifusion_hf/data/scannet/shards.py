"""Writing a data set of frames as parquet shards: in parallel, resumable, with a report of what was left out.

A shard is the work of one process on some units (scans). It is written under another name and then renamed, and a
record of it is written after that, so a shard with a record is complete; after an interruption only the others are
made. A shard with a unit that failed is made anew as well, since the cause may have been mended.
"""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ...io.atomic import new_file, remove_unfinished, write_text
from ...io.files import DataFileError
from ...stopping import leave_interrupts_to_the_parent
from ..frames import frame_features, sequence_features


# Rows of a row group: what a reader of a stream holds at a time.
ROW_GROUP = 50
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
    def load(cls, path: Path) -> "ShardRecord":
        """The record in a file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "skipped": [SkippedFrame(**item) for item in values["skipped"]]})


def write_shards(
    source: FrameSource,
    splits: Mapping[str, Sequence[str]],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    units_per_shard: int = 16,
    workers: int = 1,
    progress: bool = True,
    unit: str = "scan",
    beside: Mapping[str, str] | None = None,
) -> dict[str, ShardRecord]:
    """Writes `data/{split}-{i:05d}-of-{n:05d}.parquet` for the units of each split.

    Args:
        source: Reads the units.
        splits: Names of the units by split.
        out: Folder of the data set; a shard that is complete there is kept.
        settings: All that the content depends on beside the files, as JSON values.
        units_per_shard: Units of a shard. An interruption loses at most one shard of work for each worker.
        workers: Number of processes.
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
    out = Path(out)
    (out / "data").mkdir(parents=True, exist_ok=True)
    (out / _WORK_FOLDER).mkdir(exist_ok=True)
    _check_settings(out, {**settings, "units_per_shard": units_per_shard, "splits": splits})
    for folder in (out / "data", out / _WORK_FOLDER):
        remove_unfinished(folder)
    for name, text in (beside or {}).items():
        write_text(out / name, text)

    names, jobs = {split: [] for split in splits}, {}
    for split, units in splits.items():
        groups = [list(units[start : start + units_per_shard]) for start in range(0, len(units), units_per_shard)]
        for index, group in enumerate(groups):
            name = f"{split}-{index:05d}-of-{len(groups):05d}"
            names[split].append(name)
            if not _is_complete(out, name):
                jobs[name] = group
    total = sum(len(units) for units in splits.values())
    with tqdm(total=total, unit=unit, disable=not progress) as bar:
        bar.update(total - sum(map(len, jobs.values())))
        for name in _run(source, jobs, out, workers):
            bar.update(len(jobs[name]))

    records = {}
    for split in splits:
        records[split] = ShardRecord([])
        for name in names[split]:
            records[split].add(ShardRecord.load(_record_path(out, name)))
    return records


def _run(source: FrameSource, jobs: Mapping[str, list[str]], out: Path, workers: int) -> Iterator[str]:
    """Makes the shards; gives the name of each when it is complete."""
    if workers == 1:
        for name, units in jobs.items():
            write_shard(source, units, out, name)
            yield name
        return
    # A fork of this process would inherit the locks of its threads, and a spawned one would import all anew: the fork
    # server imports once, and forks from there.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "datasets.arrow_writer"])
    else:
        context = multiprocessing.get_context("spawn")
    count = min(workers, max(1, len(jobs)))
    with ProcessPoolExecutor(count, mp_context=context, initializer=leave_interrupts_to_the_parent) as pool:
        futures = {pool.submit(write_shard, source, units, out, name): name for name, units in jobs.items()}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            # What they write has private names, which the next run takes away.
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def write_shard(source: FrameSource, units: Iterable[str], out: Path, name: str) -> None:
    """Writes one shard and its record.

    Args:
        source: Reads the units.
        units: Their names.
        out: Folder of the data set.
        name: Of the shard, without suffix.
    """
    from datasets.arrow_writer import ParquetWriter

    record = ShardRecord(list(units))
    notes: Counter[str] = Counter()
    features = sequence_features() if source.sequences else frame_features()
    with (
        new_file(_shard_path(out, name)) as partial,
        ParquetWriter(path=str(partial), features=features, writer_batch_size=ROW_GROUP) as writer,
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
    write_text(_record_path(out, name), json.dumps(asdict(record), indent=1))


def _shard_path(out: Path, name: str) -> Path:
    return out / "data" / f"{name}.parquet"


def _record_path(out: Path, name: str) -> Path:
    return out / _WORK_FOLDER / f"{name}.json"


def _is_complete(out: Path, name: str) -> bool:
    record = _record_path(out, name)
    return _shard_path(out, name).is_file() and record.is_file() and not ShardRecord.load(record).failed


def _check_settings(out: Path, settings: Mapping[str, Any]):
    # Through JSON, so that tuples and lists are the same.
    settings = json.loads(json.dumps(settings))
    path = out / _WORK_FOLDER / "settings.json"
    if path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*settings, *earlier} if settings.get(key) != earlier.get(key))
        if changed:
            raise ValueError(
                f"{out} holds a data set that was begun with another {', '.join(changed)}; "
                "expected the same settings, or an empty folder"
            )
    elif any((out / "data").iterdir()):
        raise ValueError(f"{out / 'data'} holds other files; expected an empty folder")
    else:
        write_text(path, json.dumps(settings, indent=1))
