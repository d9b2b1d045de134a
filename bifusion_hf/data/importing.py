"""One's own frames as a data set: a recording and its labels in, parquet shards and the names of the classes out."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from ..batch import Engine
from ..io.files import DataFileError, read_bytes, read_text
from ..io.storage import Folder
from ..labels import SCANNET200_CLASS_NAMES
from .annotations import Annotations, open_annotations
from .annotations.label_images import LabelImages
from .class_names import CLASSES_FILE, class_list, classes_text, like, read_classes, read_name_file
from .frames import frame_to_row
from .recordings import Recording, open_recording
from .recordings.base import IMAGE_SUFFIXES
from .recordings.rows import ROWS_KIND
from .scannet.shards import ShardRecord, SkippedFrame, write_shards


UNANNOTATED = ("skip", "keep", "refuse")
_ENDINGS = (*IMAGE_SUFFIXES, ".npy", ".json", ".txt")


@dataclass(frozen=True)
class LabelOptions:
    """Where the labels of frames are; nothing = those of the recording itself, if it has any.

    Args:
        annotations: For `open_annotations`.
        kind: For `open_annotations`.
        instances: Folder of label images (`LabelImages`), in place of annotations.
        semantics: Folder of their classes.
        classes: File of names (`read_name_file`), or `"scannet200"`: no other names than those.

    Raises:
        ValueError: They exclude each other, or names are missing.
    """

    annotations: str | Path | None = None
    kind: str = "auto"
    instances: str | Path | None = None
    semantics: str | Path | None = None
    classes: str | Path | None = None

    def __post_init__(self):
        if self.annotations is not None and self.instances is not None:
            raise ValueError("annotations and instances exclude each other; expected one")
        if self.semantics is not None and (self.instances is None or self.classes in (None, "scannet200")):
            raise ValueError("semantics needs instances, and classes: a file with the name of each number")
        if self.classes is not None and self.annotations is None and self.semantics is None:
            raise ValueError("classes names those of annotations or semantics; expected one of these too")

    def open(self) -> Annotations | None:
        """The labels, all read where they are annotations; None = the recording's own.

        Raises:
            DataFileError: They are malformed; the message names file and place.
        """
        names, numbered = None, False
        if self.classes not in (None, "scannet200"):
            names, numbered = read_name_file(self.classes)
        if self.annotations is not None:
            return open_annotations(self.annotations, self.kind, names)
        return None if self.instances is None else LabelImages(self.instances, self.semantics, names, numbered)

    def class_names(self, labels: Sequence[str]) -> tuple[str, ...]:
        """The classes of the data set.

        Raises:
            ValueError: They are to be ScanNet200's, and a label is none.
        """
        other = [label for label in labels if label not in SCANNET200_CLASS_NAMES]
        if self.classes == "scannet200" and other:
            known = like(other[0], SCANNET200_CLASS_NAMES)
            raise ValueError(f"{self.annotations}: {other[0]!r} is no class of ScanNet200{known}")
        return class_list(labels)


@dataclass
class RecordingRows:
    """Rows of the frames of a recording, for `write_shards`; a unit is a frame's id. It goes to worker processes.

    Args:
        place: The recording.
        options: For `open_recording`.
        labels: See there.
        names: Name of the labels of each frame that has some, by the frame's id.
        classes: Class index of each label.
        jpeg_quality: Of the stored colour images; None = PNG.
    """

    place: str | Path
    options: Mapping[str, Any]
    labels: LabelOptions
    names: Mapping[str, str]
    classes: Mapping[str, int]
    jpeg_quality: int | None
    sequences: bool = field(default=False, init=False)

    def __getstate__(self) -> dict[str, Any]:
        # What is open stays here; a worker opens it anew.
        return {key: value for key, value in vars(self).items() if key not in ("recording", "annotations", "places")}

    @cached_property
    def recording(self) -> Recording:
        """The whole recording."""
        return open_recording(self.place, **self.options)

    @cached_property
    def annotations(self) -> Annotations | None:
        """Its labels."""
        return self.labels.open()

    @cached_property
    def places(self) -> dict[str, int]:
        """Place of each frame by its id."""
        return {frame_id: index for index, frame_id in enumerate(self.recording.ids)}

    def rows(self, unit: str) -> Iterator[dict[str, Any] | SkippedFrame | str]:
        """The row of a frame, and what there is to tell of it.

        Raises:
            DataFileError: Its labels are malformed. A frame that is itself is skipped.
        """
        annotations = self.annotations
        try:
            frame = self.recording[self.places[unit]]
        except ValueError as error:
            reason = "unreadable" if isinstance(error, DataFileError) else "malformed"
            yield SkippedFrame(unit, reason, str(error))
            return
        if annotations is not None:
            frame.instance = frame.semantic = None
            if unit in self.names:
                size = (frame.image.shape[1], frame.image.shape[0])
                drawn = annotations.draw(self.names[unit], size, frame.depth.shape, self.classes)
                frame.instance, frame.semantic = drawn.instance, drawn.semantic
                yield from drawn.notes
        if frame.instance is None:
            yield "frames without labels"
        try:
            yield frame_to_row(frame, jpeg_quality=self.jpeg_quality)
        except ValueError as error:
            yield SkippedFrame(unit, "out of range", f"{unit}: {error}")


def import_recording(
    source: str | Path,
    out: str | Path,
    *,
    labels: LabelOptions | None = None,
    val: float = 0.2,
    val_frames: str | Path | None = None,
    every: int = 1,
    limit: int | None = None,
    unannotated: str = "skip",
    skip_unmatched: bool = False,
    jpeg_quality: int | None = 95,
    frames_per_shard: int = 100,
    workers: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Makes a data set of a recording: `data/*.parquet`, `classes.json`, `report.json` and `report.txt`.

    An interrupted run goes on where it stopped when it is started again with the same arguments.

    Args:
        source: For `open_recording`.
        out: Folder of the data set, or its address (`io.storage`).
        labels: Where the labels are.
        val: Share of the frames for the split `val`: the last ones, since frames that follow each other are alike.
        val_frames: Text file with the name of a frame of `val` a line, in place of a share.
        every: Take every how manieth frame.
        limit: Take no more frames.
        unannotated: What becomes of a frame without annotations where others have some: `"skip"`, `"keep"` (without
            labels) or `"refuse"`. An image that the annotations name, with nothing in it, is annotated.
        skip_unmatched: Leave annotations of images that the recording does not have out, instead of refusing them.
        jpeg_quality: Of the stored colour images; None = lossless PNG.
        frames_per_shard: Frames of a parquet file: what a stop may cost.
        workers: Number of processes of this machine.
        engine: Makes the shards in place of those processes.
        progress: Show a progress bar.
        options: Further ones of `open_recording`.

    Returns:
        The report: classes, annotations without a frame, frames without annotations, and by split the number of
        frames and of objects by class, the frames left out with the reason, and labels that failed.

    Raises:
        DataFileError: Recording or labels are malformed; the message names file and place.
        ValueError: An argument is malformed, labels and frames do not fit each other, or the folder holds another
            data set.
    """
    labels = LabelOptions() if labels is None else labels
    _check(val, val_frames, unannotated, jpeg_quality)
    source_rows = RecordingRows(source, options, labels, {}, {}, jpeg_quality)
    recording, annotations = source_rows.recording, source_rows.annotations
    twice = [name for name, count in Counter(recording.ids).items() if count > 1]
    if twice:
        raise ValueError(f"{source}: has {Counter(recording.ids)[twice[0]]} frames named {twice[0]!r}; expected one")
    pieces = _pieces(recording)
    taken: Sequence[str] = recording[::every][:limit].ids
    settings: dict[str, Any] = {
        "source": str(source),
        "frames": [len(recording), *recording.ids[:: max(1, len(recording) - 1)][:2]],
        "options": {key: value if value is None else str(value) for key, value in options.items()},
        "labels": {key: None if value is None else str(value) for key, value in asdict(labels).items()},
        "jpeg_quality": jpeg_quality,
    }
    # A report is published with its data set: the folders of this machine stay out of it.
    files = {key: None if value is None else Path(value).name for key, value in settings["labels"].items()}
    shown: dict[str, Any] = {**settings, "source": Path(source).name, "labels": files, "options": {}}
    report: dict[str, Any] = {"settings": shown, "unmatched": [], "unannotated": []}
    classes = read_classes(source) if recording.kind == ROWS_KIND else SCANNET200_CLASS_NAMES
    if annotations is not None:
        classes = labels.class_names(annotations.labels)
        source_rows.classes = {name: index for index, name in enumerate(classes)}
        source_rows.names, report["unmatched"] = _match(annotations, recording, pieces, skip_unmatched)
        report["unannotated"] = [frame_id for frame_id in taken if frame_id not in source_rows.names]
        if report["unannotated"] and unannotated == "refuse":
            count = len(report["unannotated"])
            raise ValueError(f"{source}: {count} frames have no annotations: {_some(report['unannotated'])}")
        if unannotated == "skip":
            taken = [frame_id for frame_id in taken if frame_id in source_rows.names]
        settings["labels_sha256"] = shown["labels_sha256"] = _digest(annotations)
    report["classes"] = list(classes) if classes != SCANNET200_CLASS_NAMES else "ScanNet200"
    splits = _split(taken, recording, pieces, val, val_frames)
    records = write_shards(
        source_rows,
        splits,
        out,
        {**settings, "classes": report["classes"]},
        units_per_shard=frames_per_shard,
        workers=workers,
        engine=engine,
        progress=progress,
        unit="frame",
        beside={} if classes == SCANNET200_CLASS_NAMES else {CLASSES_FILE: classes_text(classes)},
    )
    report["splits"] = {split: _summary(record) for split, record in records.items()}
    folder = Folder(out)
    folder.write_text("report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    folder.write_text("report.txt", report_text(report))
    empty = [split for split, record in records.items() if not record.frames]
    if empty:
        raise ValueError(f"split {empty[0]!r} has no frame; {folder.place('report.txt')} has the reasons")
    return report


def _check(val: float, val_frames: str | Path | None, unannotated: str, jpeg_quality: int | None) -> None:
    if not 0 <= val <= 1:
        raise ValueError(f"val is {val:g}; expected a share of the frames, 0 to 1")
    if unannotated not in UNANNOTATED:
        raise ValueError(f"unannotated is {unannotated!r}; expected one of {UNANNOTATED}")
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality is {jpeg_quality}; expected 1..100 or None")


def _pieces(recording: Recording) -> dict[str, str | None]:
    """The frame that a name may mean, by all names: its id, and every part of the path of its image.

    None where several frames have the name, as `colour` of `1/colour` and `2/colour`.
    """
    pieces: dict[str, str | None] = {}
    images = recording.ids if recording.images is None else recording.images
    for frame_id, image in zip(recording.ids, images, strict=True):
        parts = PurePosixPath(image).parts
        names = {frame_id}
        names |= {"/".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)}
        for name in names:
            pieces[name] = frame_id if pieces.get(name, frame_id) == frame_id else None
    return pieces


def _frame_of(name: str, pieces: Mapping[str, str | None]) -> str | None:
    """The frame that a name means: its longest end, by whole folders, that is one frame's."""
    path = name.replace("\\", "/")
    if path.lower().endswith(_ENDINGS):
        path = path.rpartition(".")[0]
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((pieces[end] for end in ends if pieces.get(end) is not None), None)


def _match(
    annotations: Annotations, recording: Recording, pieces: Mapping[str, str | None], skip_unmatched: bool
) -> tuple[dict[str, str], list[str]]:
    """Name of its labels by frame, and names that are of no frame.

    Raises:
        ValueError: There are such names, or two of one frame.
    """
    names: dict[str, str] = {}
    unmatched = []
    for name in annotations.names:
        frame_id = _frame_of(name, pieces)
        if frame_id is None:
            unmatched.append(name)
        elif frame_id in names:
            raise ValueError(f"{recording.path}: {names[frame_id]!r} and {name!r} are both of the frame {frame_id}")
        else:
            names[frame_id] = name
    if not names or (unmatched and not skip_unmatched):
        images = recording.ids if recording.images is None else recording.images
        raise ValueError(
            f"{recording.path}: {len(unmatched)} of {len(annotations.names)} annotated images are of no frame: "
            f"{_some(unmatched)}; the {len(images)} frames are of {_some(images)}"
        )
    return names, unmatched


def _split(
    taken: Sequence[str],
    recording: Recording,
    pieces: Mapping[str, str | None],
    val: float,
    val_frames: str | Path | None,
) -> dict[str, list[str]]:
    """Ids of the frames of each split that has some.

    Raises:
        ValueError: There are no frames.
        DataFileError: The list names something else.
    """
    if not taken:
        raise ValueError(f"{recording.path}: no frame is left of {len(recording)}")
    if val_frames is None:
        # A share that is not 0 is one frame at least, and leaves one.
        count = min(max(round(val * len(taken)), val > 0), len(taken) - (val < 1))
        in_val = set(taken[len(taken) - count :])
    else:
        in_val = set()
        for number, line in enumerate(read_text(val_frames).splitlines(), 1):
            frame_id = _frame_of(line.strip(), pieces) if line.strip() else None
            if line.strip() and frame_id is None:
                raise DataFileError(f"{val_frames} (line {number})", f"{line.strip()!r} is no frame")
            in_val |= {frame_id} if frame_id is not None else set()
    splits = {
        "train": [frame_id for frame_id in taken if frame_id not in in_val],
        "val": [frame_id for frame_id in taken if frame_id in in_val],
    }
    return {split: units for split, units in splits.items() if units}


def _digest(annotations: Annotations) -> str:
    """What changes when a file of labels does."""
    digest = hashlib.sha256()
    for path in annotations.files():
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(read_bytes(path)).digest())
    return digest.hexdigest()


def _summary(record: ShardRecord) -> dict[str, Any]:
    return {
        "frames": record.frames,
        "notes": record.notes,
        "skipped": [asdict(item) for item in record.skipped],
        "failed": record.failed,
    }


def report_text(report: Mapping[str, Any]) -> str:
    """What became of the frames and labels, in lines of text."""
    classes = report["classes"]
    names = classes if isinstance(classes, str) else f"{len(classes)} of its own: {', '.join(classes)}"
    lines = [f"classes: {names}"]
    for split, part in report["splits"].items():
        lines.append(f"{split}: {part['frames']} frames")
        lines += [f"  {note}: {count}" for note, count in sorted(part["notes"].items())]
        lines += [f"  skipped, {item['reason']}: {item['detail']}" for item in part["skipped"]]
        lines += [f"  failed: {message}" for message in part["failed"].values()]
    if report["unannotated"]:
        lines.append(f"frames without annotations: {len(report['unannotated'])}: {_some(report['unannotated'])}")
    if report["unmatched"]:
        lines.append(
            f"annotations without a frame, left out: {len(report['unmatched'])}: {_some(report['unmatched'])}"
        )
    return "\n".join(lines) + "\n"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
