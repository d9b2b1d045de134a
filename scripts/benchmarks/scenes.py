"""Scenes: what merging brings over rooms, beside no merging and single frames; cost of a long session.

The network runs once for each frame; all settings see the same predictions. A killed run loses no more than a scene.
"""

import argparse
import copy
import json
import os
import pickle
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bifusion_hf.data.frames import load_frames
from bifusion_hf.data.recordings.rows import RowScenes
from bifusion_hf.evaluation.instance_average_precision import InstanceAveragePrecision
from bifusion_hf.evaluation.scene_evaluator import SceneEvaluator, evaluate_scenes
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.io.atomic import new_file, write_text
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.scenes import SceneSession

from .parameters import update_file


ROWS = {
    "geometric": "geometric merging",
    "geometric_whole": "geometric merging, masks left whole (`part_gap` 0)",
    "none": "no merging: every instance of every frame an object",
    "single_frames": "the same frames alone, over their points",
}
# Of each checkpoint of `--online`, whose network sees each frame with what it remembers of those before.
ONLINE_ROWS = {
    "geometric": "after the online stage, geometric merging",
    "learned": "after the online stage, learned merging",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the benchmark."""
    parser.add_argument("--data", help="a data set of walks (bifusion-render-rooms --path)")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--checkpoint", default="sample", help="default: sample")
    parser.add_argument(
        "--online",
        nargs="+",
        default=(),
        metavar="NAME=CHECKPOINT",
        help="checkpoints of the online stage, measured with both kinds of merging too",
    )
    parser.add_argument(
        "--rooms", metavar="NAME", help="the data are other rooms: their rows come beside those of the first ones"
    )
    parser.add_argument("--limit", type=int, help="measure the first scenes only")
    parser.add_argument("--threshold", type=float, default=0.3, help="of a frame's instances, default: 0.3")
    parser.add_argument("--updates", type=int, default=1000, help="of the long session, default: 1000")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; what it has is not measured again")
    parser.add_argument("--update", type=Path, nargs="+", default=(), metavar="FILE", help="fill in the table there")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the output file lacks, and writes the table where `--update` says."""
    online = [_named(word) for word in args.online]
    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    if args.data is not None:
        source = args.checkpoint, args.data, args.split
        partial = args.output.with_suffix(".partial")

        def keep(name: str, values: dict[str, Any]) -> None:
            results[name] = values
            write_text(args.output, json.dumps(results, indent=2) + "\n")

        def keep_merging(found: dict[str, Any]) -> None:
            others = {**results.get("other_rooms", {}), args.rooms: found}
            keep(*(("merging", found) if args.rooms is None else ("other_rooms", others)))

        known = "merging" in results if args.rooms is None else args.rooms in results.get("other_rooms", {})
        if not known or partial.exists():
            measure_merging(*source, args.limit, args.threshold, partial, keep_merging)
            partial.unlink()
        for name, checkpoint in online:
            known = results.get("online", {})
            if name not in known:
                measured = measure_online(checkpoint, *source[1:], args.limit, args.threshold)
                keep("online", {**known, name: measured})
        if "session" not in results:
            keep("session", measure_session(*source, args.updates))
    table = format_table(results)
    print(table)
    for path in args.update:
        update_file(path, "scenes", table)
    return results


def _named(word: str) -> tuple[str, str]:
    name, equals, checkpoint = word.partition("=")
    if not (name and equals and checkpoint):
        raise ValueError(f"--online is {word!r}; expected NAME=CHECKPOINT")
    return name, checkpoint


def format_table(results: Mapping[str, Any]) -> str:
    """The numbers as Markdown; without those of the session where it was not measured yet."""
    merging = results["merging"]
    protocol = merging["protocol"]
    lines = [
        f"The sample checkpoint on {protocol['num_scenes']} rendered rooms, {protocol['num_frames']} frames:",
        "",
        "| | AP | AP50 | AP25 | points that keep one id | switches an object |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(label, merging[name]) for name, label in ROWS.items()]
    rows += [
        (f"{label} ({rooms})", numbers[name])
        for rooms, numbers in results.get("other_rooms", {}).items()
        for name, label in ROWS.items()
    ]
    rows += [
        (f"{label} ({name})", numbers[merging])
        for name, numbers in results.get("online", {}).items()
        for merging, label in ONLINE_ROWS.items()
    ]
    for label, numbers in rows:
        identity = numbers.get("identity")
        cells = [f"{numbers[key]:.1f}" for key in ("ap", "ap50", "ap25")]
        cells += ["–", "–"]
        if identity is not None:
            cells[3:] = [f"{100 * identity['id_share']:.1f} %", f"{identity['id_switches_per_object']:.2f}"]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if "session" not in results:
        return "\n".join(lines)
    session = results["session"]
    memory = session["peak_mib_every_100_frames"]
    width, height = session["size"]
    lines += [
        "",
        f"A session of {session['num_frames']} frames of {width}x{height}: an update beside the network takes "
        f"{1000 * session['update_seconds_first_quarter']:.0f} ms of CPU time in the first quarter and "
        f"{1000 * session['update_seconds_last_quarter']:.0f} ms in the last; the process grows from {memory[0]} to "
        f"{memory[-1]} MiB between frame {min(100, session['num_frames'])} and the last. From images to the scene's "
        f"objects a frame takes {1000 * session['frame_seconds']:.0f} ms on {session['threads']} threads, "
        f"{1 / session['frame_seconds']:.1f} frames a second (load of the machine {session['load']:g}).",
    ]
    return "\n".join(lines)


class Replay:
    """Stands for a network: gives its stored outputs, one call after the other."""

    def __init__(self, model):
        self.config, self.device = model.config, torch.device("cpu")
        self.outputs: list[Any] = []
        self._next = 0

    def start(self) -> None:
        self._next = 0

    def __call__(self, **_inputs: Any) -> Any:
        self._next += 1
        return self.outputs[self._next - 1]


# name -> merging, masks and `part_gap` of a session; None = the processor's.
RUNS = {
    "geometric": ("geometric", "votes", None),
    "geometric_whole": ("geometric", "votes", 0.0),
    "none": ("none", "union", None),
}


@torch.no_grad()
def measure_merging(
    checkpoint: str,
    data: str,
    split: str,
    limit: int | None,
    threshold: float,
    partial: Path,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Scene AP of geometric and of no merging, and the AP of the same frames alone.

    Args:
        checkpoint: See `load_pretrained`.
        data: A data set of walks; see `bifusion-render-rooms --path`.
        split: Of it.
        limit: Scenes; None = all.
        threshold: Of the instances that enter a scene.
        partial: File that keeps the metrics of the scenes measured so far.
        keep: Takes the numbers after every scene.

    Raises:
        ValueError: `partial` is of another measurement.
    """
    model, processor = load_pretrained(checkpoint)
    replay = Replay(model.eval())
    # Superpoints are found once for each frame, as the network runs once.
    prepare, samples = processor.prepare_frame, {}
    processor.prepare_frame = lambda frame: samples[frame.frame_id]
    scenes = RowScenes(data, load_frames(data, split), limit)
    evaluators = {name: SceneEvaluator(processor, masks=masks) for name, (_, masks, _) in RUNS.items()}
    sessions = {}
    for name, (merging, _, part_gap) in RUNS.items():
        own = copy.copy(processor)
        own.part_gap = processor.part_gap if part_gap is None else part_gap
        sessions[name] = SceneSession(replay, own, merging=merging, threshold=threshold, keep_frames=False)
    single = InstanceAveragePrecision(None, int(processor.min_instance_points))
    settings = [checkpoint, str(Path(data).resolve()), split, limit, threshold, list(RUNS)]
    measured: list[str] = []
    if partial.exists():
        found, measured, metrics, single = pickle.loads(partial.read_bytes())  # noqa: S301 - our own
        if found != settings:
            raise ValueError(f"{partial} is of {found}; expected {settings}. Delete it to begin anew")
        for name, evaluator in evaluators.items():
            evaluator.metric = metrics[name]
    for scene in scenes:
        if scene in measured:
            continue
        frames = list(scenes[scene])
        replay.outputs = []
        samples.clear()
        for frame in frames:
            sample = samples[frame.frame_id] = prepare(frame)
            batch = processor.collate([sample])
            replay.outputs.append(model(**{name: batch[name] for name in FORWARD_INPUTS if name in batch}))
            found = processor.post_process_instance_segmentation(replay.outputs[-1], batch, threshold=0.0)[0]
            truth = sample["instance"], np.zeros(len(sample["class_labels"]), dtype=np.int64)
            single.update(found["point_masks"], found["scores"], found["labels"], *truth)
        for name, evaluator in evaluators.items():
            replay.start()
            evaluator.run(sessions[name], frames)
        measured.append(scene)
        metrics = {name: evaluator.metric for name, evaluator in evaluators.items()}
        with new_file(partial) as path:
            path.write_bytes(pickle.dumps((settings, measured, metrics, single)))
        results: dict[str, Any] = {name: _three(evaluator.compute()) for name, evaluator in evaluators.items()}
        results["single_frames"] = _three({"class_agnostic": single.compute()})
        results["protocol"] = {"num_scenes": len(measured), "num_frames": single.num_frames, "threshold": threshold}
        keep(results)


def measure_online(checkpoint: str, data: str, split: str, limit: int | None, threshold: float) -> dict[str, Any]:
    """Scene AP of a checkpoint of the online stage by its learned and by geometric merging; arguments as above."""
    model, processor = load_pretrained(checkpoint)
    found = {}
    for merging in ONLINE_ROWS:
        scenes = RowScenes(data, load_frames(data, split), limit)
        found[merging] = _three(evaluate_scenes(model.eval(), processor, scenes, merging=merging, threshold=threshold))
    return found


def _three(results: dict[str, Any]) -> dict[str, Any]:
    part = results["class_agnostic"]
    names = {"ap": "all_ap", "ap50": "all_ap_50%", "ap25": "all_ap_25%"}
    numbers = {short: round(100 * part[name], 1) for short, name in names.items()}
    numbers["num_instances"] = part["num_instances"]
    if "identity" in results:
        numbers["identity"] = {key: round(value, 4) for key, value in results["identity"].items()}
    return numbers


def measure_session(checkpoint: str, data: str, split: str, count: int) -> dict[str, Any]:
    """Time of an update with the network and beside it, and memory, over a long session.

    With the network the frames of the first scenes come once; then again and again, with what it found in them.

    Args:
        checkpoint: See `load_pretrained`.
        data: A data set of walks.
        split: Of it.
        count: Updates.
    """
    model, processor = load_pretrained(checkpoint)
    scenes = RowScenes(data, load_frames(data, split), 2)
    frames = [frame for scene in scenes for frame in _shifted(scenes[scene], scene, list(scenes))]
    load, whole = round(os.getloadavg()[0], 2), []
    session = SceneSession(model.eval(), processor)
    for frame in frames:
        start = time.perf_counter()
        session.update(frame)
        whole.append(time.perf_counter() - start)
    session.reset()
    predictions = [session._predict(frame) for frame in frames]
    place = iter(range(count))
    session._predict = lambda frame: _copied(predictions[next(place) % len(frames)])
    times, memory = [], []
    for index in range(count):
        start = time.process_time()
        session.update(frames[index % len(frames)])
        times.append(time.process_time() - start)
        if (index + 1) % 100 == 0 or index + 1 == count:
            memory.append(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    quarter = count // 4
    return {
        "num_frames": count,
        "size": list(frames[0].depth.shape[::-1]),
        "frame_seconds": round(float(np.median(whole)), 4),
        "threads": torch.get_num_threads(),
        "load": load,
        "update_seconds_first_quarter": round(float(np.median(times[:quarter])), 4),
        "update_seconds_last_quarter": round(float(np.median(times[-quarter:])), 4),
        "peak_mib_every_100_frames": memory,
        "objects": len(session.bank),
        "voxels": len(session.map),
    }


def _shifted(frames: Iterator[Any], scene: str, scenes: list[str]) -> Iterator[Any]:
    """Frames of a room, the rooms side by side."""
    for frame in frames:
        frame.camera_to_world[0, 3] += 10 * scenes.index(scene)
        yield frame


def _copied(prediction: tuple) -> tuple:
    result, instances, memory = prediction
    segments = [dict(segment) for segment in result["segments_info"]]
    return {**result, "segments_info": segments}, instances, memory
