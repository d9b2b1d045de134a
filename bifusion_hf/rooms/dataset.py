"""A rendered data set on disk: parquet shards, resumable, and the card."""

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.frames import frame_features, frame_from_row, frame_to_row, sequence_features
from ..io.atomic import new_file, remove_unfinished, write_text
from ..io.locks import sole_use
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
    jpeg_quality: int | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Renders a data set that `bifusion_hf.data.frames.load_frames` reads.

    Shards that are there already are kept, so that an interrupted run goes on where it stopped; the result does not
    depend on the number of workers.

    Args:
        out: Folder for `data/{split}-*.parquet`, `README.md` and `rooms.json`.
        settings: What is rendered.
        frames: Number of frames of each split.
        workers: Processes.
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
    out = Path(out)
    (out / "data").mkdir(parents=True, exist_ok=True)
    plan = {
        **settings.content(),
        "frames": frames,
        "jpeg_quality": jpeg_quality,
        "generator": GENERATOR_VERSIONS[settings.world],
    }
    with sole_use(out):
        _check_plan(out / SETTINGS_FILE, plan)
        remove_unfinished(out / "data")
        return _render(out, settings, plan, workers=workers, progress=progress)


def _render(
    out: Path, settings: RoomSettings, plan: dict[str, Any], *, workers: int, progress: bool
) -> dict[str, Any]:
    frames, jpeg_quality = plan["frames"], plan["jpeg_quality"]
    with _workers(workers, settings) as run:
        local = RoomGenerator(settings)
        models = {split: local.inventories[split].all_models() for split in SPLITS}
        jobs = [(split, index) for split in frames if frames[split] for index in range(len(models[split]))]
        for _ in tqdm(run(_prepare_model, jobs), "meshes", len(jobs), disable=not progress):
            pass
        bar = tqdm(total=sum(frames.values()), desc="frames", disable=not progress)
        for split, count in frames.items():
            _write_split(out, split, count, settings, jpeg_quality, run, bar)
        bar.close()
    used = [model for split, count in frames.items() if count for model in models[split]]
    summary = {**plan, **_summarize(out, frames)}
    write_text(out / "README.md", _card(summary, used))
    write_text(out / SETTINGS_FILE, json.dumps(summary, indent=2) + "\n")
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


def _check_plan(path: Path, plan: dict[str, Any]) -> None:
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = {key: (found.get(key), value) for key, value in plan.items() if found.get(key) != value}
        if differing:
            raise ValueError(
                f"{path.parent} holds a data set of other settings: "
                + ", ".join(f"{key} is {old}, asked for {new}" for key, (old, new) in differing.items())
                + "; expected the same ones or another folder"
            )
    write_text(path, json.dumps(plan, indent=2) + "\n")


def _shards(count: int, views: int) -> list[tuple[int, int]]:
    """First frame and frames of each shard; a room's frames stay in one shard."""
    size = max(_MAX_FRAMES_PER_SHARD // views, 1) * views
    return [(start, min(size, count - start)) for start in range(0, count, size)]


def _write_split(
    out: Path, split: str, count: int, settings: RoomSettings, jpeg_quality: int | None, run: Callable, bar: tqdm
) -> None:
    from datasets import Dataset

    views = settings.views
    features = sequence_features() if settings.path else frame_features()

    shards = _shards(count, views)
    for number, (start, length) in enumerate(shards):
        path = out / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            rooms = range(start // views, (start + length - 1) // views + 1)
            rows = []
            for room_rows in run(_room_rows, [(split, room, jpeg_quality) for room in rooms]):
                bar.update(min(len(room_rows), length - len(rows)))
                rows += room_rows
            with new_file(path) as partial:
                Dataset.from_list(rows[:length], features=features).to_parquet(partial)
        else:
            bar.update(length)


def stored_rows(out: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split as they are stored, shard by shard."""
    import pyarrow.parquet

    for path in sorted((out / "data").glob(f"{split}-*.parquet")):
        yield from pyarrow.parquet.read_table(path).to_pylist()


def frames_hash(out: Path, split: str) -> str:
    """SHA-256 over the stored bytes of all images and the numbers of all rows of a split, in order."""
    digest = hashlib.sha256()
    for row in stored_rows(out, split):
        digest.update(row["frame_id"].encode())
        for key in ("image", "depth", "instance", "semantic"):
            digest.update(row[key]["bytes"])
        for key in ("intrinsics", "camera_to_world", "depth_scale"):
            digest.update(np.asarray(row[key], dtype="<f8").tobytes())
    return digest.hexdigest()


def _summarize(out: Path, frames: dict[str, int]) -> dict[str, Any]:
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
