"""ScanNet200 as a data set of frames: from the official download to parquet shards, a report and a card."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...batch import Engine
from ...io.files import DataFileError, read_text
from ...io.storage import Folder, same_kind
from .annotations import read_label_ids
from .card import dataset_card
from .mesh_labels import MAX_DISTANCE
from .shards import FrameSource, ShardRecord, write_shards
from .source import LABEL_SOURCES, ScanNetSource


SCENE = re.compile(r"scene\d{4}_\d{2}")
_LISTED_FRAME = re.compile(r"(scene\d{4}_\d{2})_(\d{1,9})")


def read_split_list(path: str | Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """Scans, and single frames, of a split list.

    Args:
        path: A text file of one name a line: scans (`scene0000_00`, as in the official `scannetv2_train.txt`) or
            frames (`scene0000_00_200`, as in ESAM's `scannetv2_sv_train.txt`).

    Returns:
        The scans in the order of the file; the frame numbers of those that are listed by frame.

    Raises:
        DataFileError: The file cannot be read, is empty, has another line, or lists a scan twice.
    """
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    whole: list[str] = []
    frames: dict[str, list[int]] = {}
    for name in names:
        if match := _LISTED_FRAME.fullmatch(name):
            frames.setdefault(match[1], []).append(int(match[2]))
        elif SCENE.fullmatch(name):
            whole.append(name)
        else:
            raise DataFileError(path, f"has the line {name!r}; expected scene0000_00 or scene0000_00_200")
    scans = list(dict.fromkeys(match[0] for match in map(SCENE.match, names)))
    if len(whole) + len(frames) != len(scans) or not scans:
        raise DataFileError(path, "lists a scan twice" if scans else "is empty")
    return scans, {scan: tuple(dict.fromkeys(numbers)) for scan, numbers in frames.items()}


def prepare_scannet200(
    scans: str | Path,
    out: str | Path,
    split_lists: Mapping[str, str | Path],
    *,
    label_map: str | Path | None = None,
    labels: str = "auto",
    frame_interval: int = 200,
    image_size: tuple[int, int] | None = None,
    axis_align: bool = False,
    max_label_distance: float = MAX_DISTANCE,
    jpeg_quality: int | None = 95,
    assume_registered: bool = False,
    sequences: bool = False,
    scans_per_shard: int = 16,
    workers: int = 1,
    engine: Engine | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Prepares ScanNet200 and writes `data/*.parquet`, `README.md`, `report.json` and `report.txt`.

    An interrupted run goes on where it stopped when it is started again with the same arguments.

    Args:
        scans: Folder, or its address (`io.storage`), with a folder for each scan: `<scan>.sens`, or
            `color/ depth/ pose/ intrinsic/` exported from it; for labels of the mesh `<scan>_vh_clean_2.ply`,
            `<scan>_vh_clean_2.0.010000.segs.json` and `<scan>.aggregation.json`; for 2D labels
            `<scan>_2d-label-filt.zip` and `<scan>_2d-instance-filt.zip`.
        out: Folder of the data set, or its address.
        split_lists: List file (`read_split_list`) by the name of the split.
        label_map: `scannetv2-labels.combined.tsv`; needed for labels of the mesh.
        labels: `"mesh"`, `"2d"`, `"none"`, or `"auto"`: for each scan the mesh where its files are there, else the 2D
            images where they are, else none. The report counts them.
        frame_interval: Every how manieth frame of the stream is taken; 200 gives the frames of ESAM's single-view set.
        image_size: (width, height) of colour and depth, of the depth image's aspect; None = the depth camera's.
        axis_align: Turn the poses by the scan's `axisAlignment`. z is up either way.
        max_label_distance: Largest distance in metres between a pixel's point and the mesh sample that labels it.
        jpeg_quality: Of the stored colour images; None = lossless PNG.
        assume_registered: Take colour as registered to depth although a `.sens` says otherwise.
        sequences: Rows for windows of frames too: `scene_id`, and `object_ids` and `object_boxes` of the whole objects
            of the mesh, which each scan then needs. ESAM's online stage has a `frame_interval` of 40.
        scans_per_shard: Scans of a parquet file.
        workers: Number of processes of this machine.
        engine: Makes the shards in place of those processes.
        progress: Show a progress bar.

    Returns:
        The report: by split the number of scans and frames, skipped frames with the reason, scans that failed, notes.

    Raises:
        ValueError: An argument is malformed, a split has no frame, or the folder holds another data set.
        DataFileError: A list or the label table cannot be read.
    """
    if labels not in LABEL_SOURCES:
        raise ValueError(f"labels is {labels!r}; expected one of {LABEL_SOURCES}")
    if labels in ("auto", "mesh") and label_map is None:
        raise ValueError("label_map is missing; expected scannetv2-labels.combined.tsv, or labels '2d' or 'none'")
    if frame_interval < 1:
        raise ValueError(f"frame_interval is {frame_interval}; expected at least 1")
    if image_size is not None and min(image_size) < 1:
        raise ValueError(f"image_size is {image_size}; expected (width, height)")
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ValueError(f"jpeg_quality is {jpeg_quality}; expected 1..100 or None")
    splits, frame_numbers = _read_splits(split_lists)
    settings = {
        "labels": labels,
        "frame_interval": frame_interval,
        "image_size": image_size,
        "axis_align": axis_align,
        "max_label_distance": max_label_distance,
        "jpeg_quality": jpeg_quality,
        "assume_registered": assume_registered,
        # Data sets that were begun before there was this choice go on.
        **({"sequences": True} if sequences else {}),
    }
    source = ScanNetSource(
        same_kind(scans),
        label_ids=None if label_map is None else read_label_ids(label_map),
        frame_numbers=frame_numbers,
        **settings,
    )
    return write_data_set(
        source,
        splits,
        out,
        {**settings, "frame_numbers": frame_numbers},
        units_per_shard=scans_per_shard,
        workers=workers,
        engine=engine,
        progress=progress,
    )


def write_data_set(
    source: FrameSource,
    splits: Mapping[str, Sequence[str]],
    out: str | Path,
    settings: Mapping[str, Any],
    **options: Any,
) -> dict[str, Any]:
    """Writes shards, report and card of a data set of ScanNet's frames.

    Args:
        source: See `write_shards`; likewise the others.
        splits: See `write_shards`.
        out: See `write_shards`.
        settings: See `write_shards`.
        options: `units_per_shard`, `workers`, `engine`, `progress` of `write_shards`.

    Returns:
        The report; see `prepare_scannet200`.

    Raises:
        ValueError: A split has no frame (the report is written all the same), or see `write_shards`.
        FolderInUseError: Another process writes there.
    """
    folder = Folder(out)
    with folder.sole_use():
        return _write_data_set(source, splits, folder, settings, options)


def _write_data_set(
    source: FrameSource,
    splits: Mapping[str, Sequence[str]],
    out: Folder,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    records = write_shards(source, splits, out.address, settings, **options)
    shown = {key: value for key, value in settings.items() if key != "frame_numbers"}
    report = {"settings": shown, "splits": {split: _summary(record) for split, record in records.items()}}
    out.write_text("report.json", json.dumps(report, indent=1) + "\n")
    out.write_text("report.txt", report_text(report))
    empty = [split for split, record in records.items() if record.frames == 0]
    if empty:
        raise ValueError(f"split {empty[0]!r} has no frame; {out.place('report.txt')} has the reasons")
    out.write_text("README.md", dataset_card(report))
    return report


def report_summary(report: Mapping[str, Any]) -> str:
    """What became of each split, in lines of text."""
    lines = []
    for split, part in report["splits"].items():
        lines.append(f"{split}: {part['frames']} frames of {part['scans']} scans")
        lines += [f"  {note}: {count} scans" for note, count in sorted(part["notes"].items())]
        lines += [f"  skipped, {reason}: {count} frames" for reason, count in part["skipped_by_reason"].items()]
        lines += [f"  failed: {message}" for message in part["failed"].values()]
    return "\n".join(lines) + "\n"


def report_text(report: Mapping[str, Any]) -> str:
    """The whole report in lines of text: summary, settings, and each skipped frame."""
    lines = [f"{name}: {value}" for name, value in report["settings"].items()]
    skipped = [item for part in report["splits"].values() for item in part["skipped"]]
    lines += ["", "Skipped frames"] if skipped else []
    lines += [f"  {item['frame_id']} ({item['reason']}): {item['detail']}" for item in skipped]
    return report_summary(report) + "\n" + "\n".join(lines) + "\n"


def _summary(record: ShardRecord) -> dict[str, Any]:
    return {
        "scans": len(record.units),
        "frames": record.frames,
        "notes": record.notes,
        "skipped_by_reason": dict(Counter(item.reason for item in record.skipped)),
        "skipped": [asdict(item) for item in record.skipped],
        "failed": record.failed,
    }


def _read_splits(
    split_lists: Mapping[str, str | Path],
) -> tuple[dict[str, list[str]], dict[str, tuple[int, ...]]]:
    splits, frame_numbers = {}, {}
    for split, path in split_lists.items():
        if not re.fullmatch(r"[A-Za-z0-9_]+", split):
            raise ValueError(f"split is named {split!r}; expected letters, digits and underscores")
        splits[split], numbers = read_split_list(path)
        shared = [scan for other in splits if other != split for scan in splits[other] if scan in set(splits[split])]
        if shared:
            raise DataFileError(path, f"has the scan {shared[0]} of another split; expected separate splits")
        frame_numbers |= numbers
    if not splits:
        raise ValueError("split_lists is empty; expected a list file for each split")
    return splits, frame_numbers
