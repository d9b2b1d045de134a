"""A rendered data set on disk: parquet shards, resumable, and the card."""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..batch import Engine, Work, cut, shard_names
from ..data.frame_table import FrameTable
from ..data.frames import frame_features, frame_from_row, frame_to_row, sequence_features
from ..io.storage import Folder
from ..labels import SCANNET200_CLASS_NAMES
from ..stopping import leave_interrupts_to_the_parent
from .catalog import attribution
from .generate import SPLITS, RoomGenerator, RoomSettings
from .paths import room_sequence
from .sensor import about_sensors


SETTINGS_FILE = "rooms.json"
# Bump a world's number when the same settings give other frames of it.
GENERATOR_VERSIONS = {"rooms": 2, "tabletop": 4, "mixed": 4}
_CARD = Path(__file__).with_name("dataset_card.md")
_MAX_FRAMES_PER_SHARD = 200
_ROOMS = """Synthetic rooms with furniture, clutter, light and shadow, seen by a hand-held camera with ScanNet-like
intrinsics (fx = fy = 577.87 at 640 x 480). Colour has lens and sensor noise."""
_TABLETOP = """Close-ups of 1 to 25 things, apart, in contact, stacked and heaped, on tables, furniture, floors, in
bins and on shelves: printed packages, vessels, tools, toys, books, plants, food, cables, and catalogue models at their
own and other sizes, matt and shiny. Cameras of 30 to 90 degrees field of view, 0.3 to 5 m away, of any tilt and some
roll; light with tints, automatic exposure, white balance that leaves some of a tint, blur, noise and JPEG. Pictures on
things are drawn for each of them; nothing is inside of anything else."""
_ABOUT = {
    "rooms": ("Rooms", _ROOMS),
    "tabletop": ("Tabletop", _TABLETOP),
    "mixed": ("Rooms and tabletop", f"Scenes of two kinds in turn.\n\n{_ROOMS}\n\n{_TABLETOP}"),
}
_PHOTOMETRIC = """
## Photometric classes
Classes of one family have one shape, with sizes of one distribution, and prints of the same colours, shares of them
and periods (26 to 38 mm), so that only fine texture tells them apart: rows, columns, diagonals or dots, in this order.

%s

`rooms.json` names them too, so that results on these and on the other classes can be read apart.
"""
_PACK_LICENCE = "\nSome textures of walls and floors: `miniworld`, Apache-2.0.\n"

_generator: RoomGenerator | None = None


def _start_worker(settings: RoomSettings) -> None:
    global _generator
    _generator = RoomGenerator(settings)


def _start_process(settings: RoomSettings) -> None:
    leave_interrupts_to_the_parent()
    _start_worker(settings)


def _prepare_model(job: tuple[str, int]) -> None:
    split, index = job
    inventory = _generator.inventories[split]
    inventory.prepare(inventory.all_models()[index])


def _room_rows(job: tuple[str, int, int | None]) -> list[dict[str, Any]]:
    split, number, jpeg_quality = job
    if _generator.settings.path:
        sequence = room_sequence(_generator, split, number, _generator.settings.views)
        objects = {"object_ids": sequence.instance_ids.tolist(), "object_boxes": sequence.instance_boxes.tolist()}
        return [
            {**frame_to_row(frame, jpeg_quality=jpeg_quality), "scene_id": sequence.scene_id, **objects}
            for frame in sequence.frames
        ]
    return [frame_to_row(frame, jpeg_quality=jpeg_quality) for frame in _generator.room_frames(split, number)]


def build_dataset(
    out: str | Path, settings: RoomSettings, frames: dict[str, int], *, workers: int = 1,
    engine: Engine | None = None, jpeg_quality: int | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Renders a data set that `bifusion_hf.data.frames.load_frames` reads.

    Shards that are there already are kept, so that an interrupted run goes on where it stopped; the result does not
    depend on the number of workers.

    Args:
        out: Folder for `data/{split}-*.parquet`, `README.md` and `rooms.json`, or its address (`io.storage`).
        settings: What is rendered.
        frames: Number of frames of each split.
        workers: Processes of this machine, which share the rooms of each shard.
        engine: Renders the shards in place of those processes, each shard in one worker.
        jpeg_quality: Of the colour images; None writes PNG.
        progress: Show a bar.

    Returns:
        What is written to `rooms.json`: settings, counts and the hash of the frames.

    Raises:
        ValueError: The folder holds a data set of other settings, or a split is unknown.
        FolderInUseError: Another process writes there.
    """
    unknown = set(frames) - set(SPLITS)
    if unknown:
        raise ValueError(f"splits {sorted(unknown)} are unknown; expected names out of {SPLITS}")
    folder = Folder(out)
    if folder.path is not None:
        (folder.path / "data").mkdir(parents=True, exist_ok=True)
    plan = {
        **settings.content(),
        "frames": frames,
        "jpeg_quality": jpeg_quality,
        "generator": GENERATOR_VERSIONS[settings.world],
    }
    with folder.sole_use():
        _check_plan(folder, plan)
        folder.remove_unfinished("data")
        if engine is not None:
            return _render_by(engine, folder, settings, plan, progress=progress)
        return _render(folder, settings, plan, workers=workers, progress=progress)


def _render(
    out: Folder, settings: RoomSettings, plan: dict[str, Any], *, workers: int, progress: bool
) -> dict[str, Any]:
    frames, jpeg_quality = plan["frames"], plan["jpeg_quality"]
    with _workers(workers, settings) as run:
        local = RoomGenerator(settings)
        models = {split: local.inventories[split].all_models() for split in SPLITS}
        jobs = [(split, index) for split in frames if frames[split] for index in range(len(models[split]))]
        for _ in tqdm(run(_prepare_model, jobs), "meshes", len(jobs), disable=not progress):
            pass
        bar = tqdm(total=sum(frames.values()), desc="frames", disable=not progress)

        def told(function: Callable, jobs: list) -> Iterator[list[dict[str, Any]]]:
            for rows in run(function, jobs):
                bar.update(len(rows))
                yield rows

        for name, shard in _plan_shards(frames, settings.views).items():
            if out.is_file(_shard_file(name)):
                bar.update(shard.length)
            else:
                _write_shard(out, name, shard, settings, jpeg_quality, told)
        bar.close()
    return _finish(out, plan, models)


def _render_by(
    engine: Engine, out: Folder, settings: RoomSettings, plan: dict[str, Any], *, progress: bool
) -> dict[str, Any]:
    frames = plan["frames"]
    done = set(out.names("data/*.parquet"))
    shards = _plan_shards(frames, settings.views)
    left = {name: shard for name, shard in shards.items() if _shard_file(name) not in done}
    with tqdm(total=sum(frames.values()), desc="frames", disable=not progress) as bar:
        bar.update(sum(shard.length for name, shard in shards.items() if name not in left))
        for name, _ in engine.run(partial(_shard_work, out, settings, plan["jpeg_quality"]), left):
            bar.update(shards[name].length)
    # Of workers that were killed.
    out.remove_unfinished("data")
    inventories = RoomGenerator(settings).inventories
    return _finish(out, plan, {split: inventories[split].all_models() for split in SPLITS})


def _shard_work(out: Folder, settings: RoomSettings, jpeg_quality: int | None) -> Work:
    """What a worker of an engine calls for each shard."""
    _start_worker(settings)

    def work(name: str, shard: "RoomShard") -> None:
        _write_shard(out, name, shard, settings, jpeg_quality, map)

    return work


def _finish(out: Folder, plan: dict[str, Any], models: dict[str, list]) -> dict[str, Any]:
    """Writes card and summary, and gives the summary."""
    frames = plan["frames"]
    used = [model for split, count in frames.items() if count for model in models[split]]
    summary = {**plan, **_summarize(out, frames)}
    out.write_text("README.md", _card(summary, used))
    out.write_text(SETTINGS_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


@contextlib.contextmanager
def _workers(count: int, settings: RoomSettings) -> Iterator[Callable[[Callable, list], Iterator]]:
    """A `map` over processes with a generator each; one worker is this process."""
    if count == 1:
        _start_worker(settings)
        yield map
        return
    # Each worker fills a core by itself; threads of linear algebra would only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(count, _start_process, (settings,)) as pool:
        yield pool.imap


def _check_plan(out: Folder, plan: dict[str, Any]) -> None:
    if out.is_file(SETTINGS_FILE):
        found = json.loads(out.read_text(SETTINGS_FILE))
        differing = {key: (found.get(key), value) for key, value in plan.items() if found.get(key) != value}
        if differing:
            raise ValueError(
                f"{out} holds a data set of other settings: "
                + ", ".join(f"{key} is {old}, asked for {new}" for key, (old, new) in differing.items())
                + "; expected the same ones or another folder"
            )
    out.write_text(SETTINGS_FILE, json.dumps(plan, indent=2) + "\n")


class RoomShard(NamedTuple):
    """Frames of a shard.

    Args:
        split: `"train"` or `"val"`.
        start: First frame.
        length: Number of frames.
    """

    split: str
    start: int
    length: int


def _plan_shards(frames: dict[str, int], views: int) -> dict[str, RoomShard]:
    """The shards by their names; a room's frames stay in one shard."""
    size = max(_MAX_FRAMES_PER_SHARD // views, 1) * views
    shards = {}
    for split, count in frames.items():
        parts = [RoomShard(split, piece[0], len(piece)) for piece in cut(range(count), size)]
        shards.update(zip(shard_names(split, len(parts)), parts, strict=True))
    return shards


def _shard_file(name: str) -> str:
    return f"data/{name}.parquet"


def _write_shard(
    out: Folder, name: str, shard: RoomShard, settings: RoomSettings, jpeg_quality: int | None, run: Callable
) -> None:
    from datasets import Dataset

    first, last = shard.start // settings.views, (shard.start + shard.length - 1) // settings.views
    rows: list[dict[str, Any]] = []
    for room_rows in run(_room_rows, [(shard.split, room, jpeg_quality) for room in range(first, last + 1)]):
        rows += room_rows
    features = sequence_features() if settings.path else frame_features()
    with out.new_file(_shard_file(name)) as path:
        Dataset.from_list(rows[: shard.length], features=features).to_parquet(path)


def stored_rows(out: str | Path | Folder, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split as they are stored, shard by shard."""
    table = FrameTable(out.address if isinstance(out, Folder) else out, split)
    yield from table.rows(0, len(table))


def frames_hash(out: str | Path | Folder, split: str) -> str:
    """SHA-256 over the stored bytes of all images and the numbers of all rows of a split, in order."""
    digest = hashlib.sha256()
    for row in stored_rows(out, split):
        digest.update(row["frame_id"].encode())
        for key in ("image", "depth", "instance", "semantic"):
            digest.update(row[key]["bytes"])
        for key in ("intrinsics", "camera_to_world", "depth_scale"):
            digest.update(np.asarray(row[key], dtype="<f8").tobytes())
    return digest.hexdigest()


def _summarize(out: Folder, frames: dict[str, int]) -> dict[str, Any]:
    summary: dict[str, Any] = {"sha256": {}, "instances_per_frame": {}, "depth_holes": {}, "classes": {}}
    for split, count in frames.items():
        if not count:
            continue
        classes: Counter[str] = Counter()
        instances, holes = [], []
        for row in stored_rows(out, split):
            frame = frame_from_row(row)
            ids, first = np.unique(frame.instance, return_index=True)
            kept = ids >= 0
            classes.update(SCANNET200_CLASS_NAMES[index] for index in frame.semantic.ravel()[first[kept]])
            instances.append(int(kept.sum()))
            holes.append(float(np.mean(frame.depth == 0)))
        summary["sha256"][split] = frames_hash(out, split)
        summary["instances_per_frame"][split] = round(float(np.mean(instances)), 2)
        summary["depth_holes"][split] = round(float(np.mean(holes)), 4)
        summary["classes"][split] = dict(classes.most_common())
    return summary


def _card(summary: dict[str, Any], models: list) -> str:
    families = "\n".join(f"- {name}: {', '.join(classes)}" for name, classes in summary["photometric"].items())
    licences = "cc0-1.0" if set(summary["libraries"]) <= {"BlendSwap-CC-0"} else "cc-by-3.0"
    splits = "\n".join(
        f"| {split} | {count} | {summary['instances_per_frame'][split]} | {100 * summary['depth_holes'][split]:.0f} % "
        f"| `{summary['sha256'][split]}` |"
        for split, count in summary["frames"].items()
        if count
    )
    title, about = _ABOUT[summary["world"]]
    return Template(_CARD.read_text(encoding="utf-8")).substitute(
        title=title,
        about=about,
        sensor=summary["sensor"] if summary["sensor"] != "mixed" else "another sensor for each frame",
        sensors="\n".join(f"- {name}: {text}" for name, text in about_sensors(summary["sensor"]).items()),
        licence=licences,
        photometric=_PHOTOMETRIC % families if families else "",
        textures="" if summary["texture_pack"] is None else _PACK_LICENCE,
        libraries=", ".join(summary["libraries"]) or "none (parametric furniture alone)",
        width=summary["width"],
        height=summary["height"],
        seed=summary["seed"],
        views=summary["views"],
        splits=splits,
        classes=len(set().union(*summary["classes"].values())),
        attribution=attribution(models) or "No catalogue model was used.",
    )
