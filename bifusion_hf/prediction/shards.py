"""Prediction in shards: each is a file of results, whole or not there, and a run goes on with those that are not."""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch import Engine, LocalEngine, Processes, check_settings
from ..data.frames import RGBDFrame
from ..io.ahead import one_ahead
from ..io.hub_files import weights_digest
from ..io.storage import Folder
from .files import WRITERS, merge_results, read_about
from .segmenter import load_segmenter
from .sources import BrokenFrame, FrameSource, Piece


if TYPE_CHECKING:
    from ..labeling import TextLabeler

_SHARDS = "shards"
_SETTINGS_FILE = ".prediction/settings.json"
# What workers have from the start.
PRELOAD = (__name__, "bifusion_hf.pipeline_bifusion", "pyarrow.parquet")


@dataclass(frozen=True)
class PredictionSettings:
    """What decides the results, beside the frames; see `bifusion-predict` for each.

    Args:
        checkpoint: Of `load_pretrained`.
        threshold: Instances need a higher score.
        name_threshold: See the pipeline; None = the processor's.
        part_gap: Metres; None = the processor's.
        camera_up: Without a pose, take the camera's up.
        mask_generator: Model that makes the superpoints.
        labels: Names to choose from.
        labeler: Arguments of `TextLabeler` but for the device; needs `labels`.
        top_k: Candidates listed.
        batch_size: Frames of one forward. Padding may change the last digits of a score.
    """

    checkpoint: str
    threshold: float = 0.5
    name_threshold: float | None = None
    part_gap: float | None = None
    camera_up: bool = False
    mask_generator: str | None = None
    labels: Sequence[str] | None = None
    labeler: Mapping[str, Any] = field(default_factory=dict)
    top_k: int = 5
    batch_size: int = 4

    def described(self) -> dict[str, Any]:
        """The settings as JSON values, with what tells these weights from later ones of the same folder."""
        labeler = {name: value if value is None else str(value) for name, value in self.labeler.items()}
        return {**asdict(self), "labeler": labeler, "weights_sha256": weights_digest(self.checkpoint)}


class ShardPredictor:
    """Predicts the frames of shards; the network is loaded once.

    Args:
        source: Of the frames.
        settings: What decides the results.
        folder: Of the results.
        kind: Of the files, a key of `WRITERS`.
        device: Of `load_segmenter`.
    """

    def __init__(
        self, source: FrameSource, settings: PredictionSettings, folder: Folder, kind: str, device: str | None
    ):
        self.source, self.settings, self.folder, self.kind = source, settings, folder, kind
        self.segmenter = load_segmenter(settings.checkpoint, device)
        self.segmenter.processor.estimate_up &= not settings.camera_up
        if settings.part_gap is not None:
            self.segmenter.processor.part_gap = settings.part_gap
        self._generator = None
        if settings.mask_generator is not None:
            from ..superpoints.masks import load_mask_generator

            self._generator = load_mask_generator(settings.mask_generator)
        self._options: dict[str, Any] = {"threshold": settings.threshold}
        if settings.name_threshold is not None:
            self._options["name_threshold"] = settings.name_threshold
        if settings.labeler:
            self._options.update(candidate_labels=settings.labels, labeler=self._labeler(), top_k=settings.top_k)

    def _labeler(self) -> "TextLabeler":
        from ..labeling import TextLabeler

        return TextLabeler(**self.settings.labeler, device=self.segmenter.device)

    def __call__(self, name: str, piece: Piece) -> dict[str, Any]:
        """Writes the results of a shard.

        Returns:
            `frames`, `instances`, `skipped` (reason by frame) and `seconds`.
        """
        begin = time.perf_counter()
        suffix, kind = WRITERS[self.kind]
        skipped: dict[str, str] = {}
        frames = instances = 0
        with self.folder.new_file(f"{_SHARDS}/{name}{suffix}") as path:
            writer = kind(path)
            samples = one_ahead(self._samples(piece, skipped))
            while batch := list(itertools.islice(samples, self.settings.batch_size)):
                collated = self.segmenter.collate([sample for _, sample in batch])
                outputs = self.segmenter.forward(collated, score_threshold=self._options["threshold"])
                results = self.segmenter.postprocess(outputs, **self._options)
                for (number, _), result in zip(batch, results, strict=True):
                    writer.write(number, result)
                    instances += len(result["segments_info"])
                frames += len(batch)
            about = {"piece": list(piece), "frames": frames, "instances": instances, "skipped": skipped}
            writer.close(about)
        return {**about, "seconds": time.perf_counter() - begin}

    def _samples(self, piece: Piece, skipped: dict[str, str]) -> Iterator[tuple[int, Any]]:
        """Number and sample of the frames of a piece; those that cannot be used go to `skipped`."""
        for number, frame in self.source.frames(piece):
            if isinstance(frame, BrokenFrame):
                skipped[frame.frame_id] = frame.reason
                continue
            try:
                yield number, self._prepare(frame)
            except ValueError as error:
                skipped[frame.frame_id] = str(error)

    def _prepare(self, frame: RGBDFrame) -> Any:
        if self._generator is not None:
            from ..superpoints.masks import superpoints_from_mask_generator

            frame.superpoints = superpoints_from_mask_generator(
                self._generator, frame.image, frame.depth, frame.intrinsics
            )
        return self.segmenter.preprocess(frame)


def predict_shards(
    source: FrameSource,
    settings: PredictionSettings,
    out: str | Path,
    *,
    kind: str = "parquet",
    shard_size: int = 256,
    merge: bool = False,
    device: str | None = None,
    engine: Engine | None = None,
    processes: Processes | None = None,
    tell: bool = True,
) -> dict[str, Any] | None:
    """Predicts all frames of a source: `shards/NAME` for each shard, and `report.json` in the end.

    A run that was interrupted, or lost a process, goes on where it stopped when it is started again with the same
    arguments, on any engine and any number of processes.

    Args:
        source: Of the frames.
        settings: What decides the results.
        out: Folder of the results, or its address (`io.storage`).
        kind: `"parquet"` or `"coco"`.
        shard_size: Frames of a shard, at most: what a stop may cost.
        merge: Also write all frames to one file, `results.parquet` or `results.json`.
        device: See `load_segmenter`.
        engine: Makes the shards; None = this process.
        processes: Of the launch, among which the shards are shared.
        tell: Print a line for each shard.

    Returns:
        The report, in the main process: settings, and the number of shards, frames and instances, and the frames that
        could not be used with the reason; None in the others.

    Raises:
        ValueError: The folder holds results of other settings, or an argument is malformed.
        DataFileError: The source cannot be read.
        FolderInUseError: Another run writes there.
    """
    if kind not in WRITERS:
        raise ValueError(f"kind is {kind!r}; expected one of {tuple(WRITERS)}")
    if settings.batch_size < 1:
        raise ValueError(f"batch_size is {settings.batch_size}; expected at least 1")
    engine = LocalEngine() if engine is None else engine
    processes = Processes() if processes is None else processes
    folder, suffix = Folder(out), WRITERS[kind][0]
    build: Any = partial(ShardPredictor, source, settings, folder, kind, device)
    if not processes.is_main:
        _run(engine, build, processes.share({}), tell)
        processes.gather(None)
        return None
    described = {
        "source": source.name,
        **settings.described(),
        "kind": kind,
        "shard_size": shard_size,
    }
    with folder.sole_use():
        pieces = source.shards(shard_size)
        digest = hashlib.sha256(json.dumps(pieces).encode()).hexdigest()
        check_settings(folder, _SETTINGS_FILE, {**described, "frames": digest}, "results", _SHARDS)
        folder.remove_unfinished(_SHARDS)
        done = set(folder.names(f"{_SHARDS}/*{suffix}"))
        left = {name: piece for name, piece in pieces.items() if f"{_SHARDS}/{name}{suffix}" not in done}
        if tell and len(left) < len(pieces):
            print(f"{len(pieces) - len(left)} of {len(pieces)} shards are there", flush=True)
        _run(engine, build, processes.share(left), tell)
        processes.gather(None)
        # Of workers that were killed.
        folder.remove_unfinished(_SHARDS)
        names = [f"{_SHARDS}/{name}{suffix}" for name in pieces]
        report = {"settings": described, **_total(folder, names)}
        if merge:
            merge_results(folder, names, f"results{suffix}", report)
        folder.write_text("report.json", json.dumps(report, indent=1) + "\n")
    return report


def _run(engine: Engine, build: Any, pieces: Mapping[str, Piece], tell: bool) -> None:
    """Makes the shards of this process, with a line for each."""
    for name, record in engine.run(build, pieces):
        if tell:
            speed = record["frames"] / max(record["seconds"], 1e-9)
            skipped = f", {len(record['skipped'])} frames skipped" if record["skipped"] else ""
            print(f"{name}: {record['frames']} frames, {speed:.2f} a second{skipped}", flush=True)


def _total(folder: Folder, names: Sequence[str]) -> dict[str, Any]:
    about = [read_about(folder, name) for name in names]
    return {
        "shards": len(names),
        "frames": sum(shard["frames"] for shard in about),
        "instances": sum(shard["instances"] for shard in about),
        "skipped": {frame: reason for shard in about for frame, reason in shard["skipped"].items()},
    }
