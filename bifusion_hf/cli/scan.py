"""bifusion-scan: the objects of a whole scene from a recording of posed frames."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import assets
from ..io.atomic import new_file, write_text
from ..io.locks import sole_use
from ..io.sanity import check_fraction
from ..stopping import Stopped, StopSignals
from .entry import command
from .labeler_options import LABELS_HELP, add_labeler_options, check_labeler_options, given_labels, load_labeler
from .output_names import file_name, unique_names
from .parser import DEVICE_HELP, CommandParser, one_of
from .recording_options import add_camera_options, add_recording_options, open_source, parse_intrinsics


if TYPE_CHECKING:
    from ..data.recordings import Recording
    from ..scenes import SceneObject, SceneSession

SESSION_FILE = "session.safetensors"
MAX_ANIMATED = 300
EXAMPLES = """examples:
  bifusion-scan scene0000_00.sens --every 40 --output out
  bifusion-scan rgbd_dataset_freiburg2_desk --every 10 --output out
  bifusion-scan recording.r3d --every 10 --output out --rerun
  bifusion-scan rooms --split val --scene rooms-0-val-00000-path --output out
  bifusion-scan recording.r3d --every 10 --output out --find "red mug" --labeler google/siglip2-base-patch16-224

A run that was stopped goes on where it was when it is started again with the same arguments. With other --find or
--labels, a scan that has ended with --labeler only answers.
"""


@command("bifusion-scan")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    one_of(parser, arguments, "source", ["recording", "data"], needed=True)
    parse_intrinsics(parser, arguments)
    check_fraction("--threshold", arguments.threshold)
    check_fraction("--min_score", arguments.min_score)
    check_fraction("--label_floor", arguments.label_floor)
    check_labeler_options(parser, arguments, ("find", "labels"))
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is a file; expected a folder")
    if arguments.save_every < 1:
        parser.error(f"--save_every is {arguments.save_every}; expected at least 1")
    try:
        run(arguments)
    except Stopped:
        words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--overwrite"]
        print(f"It goes on with:\n  {shlex.join(['bifusion-scan', *words])}", file=sys.stderr)
        raise


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-scan",
        description="Segments the frames of a recording and merges them into the objects of one scene. Writes "
        "scene.ply (one colour an object, ids as a property), objects.json, frames/NAME.jpg (masks whose colours stay "
        "with the object) and an animation of them.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="folders color/ depth/ pose/ intrinsic/, .sens, TUM RGB-D, trajectory.log, .r3d, a folder a frame, or a "
        "data set; docs/scenes.md has the layouts",
    )
    parser.add_argument("--recording", metavar="SOURCE", help="the same, as in bifusion-predict")
    parser.add_argument("--data", metavar="SOURCE", help="the same, for a data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--checkpoint",
        default=str(assets.SAMPLE_CHECKPOINT),
        help="folder, or id on the Hub (org/name or org/name@revision); by default the checkpoint that comes with the "
        "package",
    )
    parser.add_argument("--split", default="val", help="of a data set, default: val")
    add_recording_options(parser)
    add_camera_options(parser)
    parser.add_argument(
        "--merging",
        choices=("learned", "geometric", "none"),
        help="how frames become objects; by default learned where the checkpoint has the heads for it, else geometric",
    )
    parser.add_argument("--threshold", type=float, default=0.3, help="of the instances of a frame, default: 0.3")
    parser.add_argument("--min_score", type=float, default=0.3, help="of the objects in the results, default: 0.3")
    parser.add_argument("--min_views", type=int, default=2, help="frames that found an object, default: 2")
    parser.add_argument("--voxel_size", type=float, default=0.04, help="metres, of the scene's map, default: 0.04")
    naming = parser.add_argument_group("names in your own words")
    naming.add_argument("--labels", nargs="+", metavar="LABEL", help=LABELS_HELP)
    naming.add_argument(
        "--find", action="append", metavar="TEXT", help="print the objects that a text fits best; needs --labeler"
    )
    naming.add_argument(
        "--top_k", type=int, default=5, help="objects of --find, and candidates of --labels; default: 5"
    )
    add_labeler_options(naming)
    parser.add_argument("--animation", choices=("webp", "gif", "none"), help="default: webp where Pillow writes it")
    parser.add_argument("--rerun", action="store_true", help="also write scene.rrd for the Rerun viewer (extra rerun)")
    parser.add_argument("--save_every", type=int, default=20, metavar="N", help="frames between saves, default: 20")
    parser.add_argument("--strict", action="store_true", help="stop at the first frame that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="start anew in a folder that has a scan")
    parser.add_argument("--device", help=DEVICE_HELP)
    return parser


def run(arguments: argparse.Namespace) -> "SceneSession":
    """Scans what the arguments name and writes the results.

    Raises:
        ValueError: The recording has no poses, no frame could be used, or the folder holds another scan.
    """
    from ..import_utils import require_package

    if arguments.rerun:
        require_package("rerun")
    arguments.labels = given_labels(arguments.labels)
    recording = open_source(arguments.source, arguments)
    if not recording.posed:
        raise ValueError(f"{arguments.source}: {recording.kind} without poses; a scene needs the pose of each frame")
    with sole_use(arguments.output):
        session = open_session(arguments, recording)
        scan(session, recording, arguments)
        if not session.num_frames:
            first = session.notes["skipped"][0]
            raise ValueError(f"{arguments.source}: none of {len(recording)} frames could be used; the first: {first}")
        write_results(session, recording, arguments)
    return session


def plan_of(arguments: argparse.Namespace, recording: "Recording") -> dict[str, Any]:
    """What the content of a scan follows from."""
    names = ("checkpoint", "merging", "threshold", "voxel_size", "intrinsics", "depth_scale", "up")
    # Templates and floor are asked at the end, and a scan without a labeler is as those of earlier releases.
    names += () if arguments.labeler is None else ("labeler", "labeler_mode")
    return {
        "source": str(arguments.source),
        "frames": [len(recording), recording.ids[0], recording.ids[-1]],
        **{name: getattr(arguments, name) for name in names},
    }


def open_session(arguments: argparse.Namespace, recording: "Recording") -> "SceneSession":
    """A new session, or the one that an earlier run left.

    Raises:
        ValueError: The earlier run had other arguments.
    """
    import torch
    from transformers.utils import logging

    from ..hub.pretrained import load_pretrained
    from ..scenes import SceneSession

    logging.disable_progress_bar()
    model, processor = load_pretrained(arguments.checkpoint)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.eval().to(device)
    labeler = load_labeler(arguments, device)
    plan, path = plan_of(arguments, recording), arguments.output / SESSION_FILE
    if path.exists() and not arguments.overwrite:
        session = SceneSession.load(path, model, processor, labeler)
        found = session.notes.get("plan", {})
        differing = [
            f"{key} was {found.get(key)}, is {value}" for key, value in plan.items() if found.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{path} is of another scan: {'; '.join(differing)}. Give another --output, or --overwrite"
            )
        # Sessions of release 0.1 do not say.
        taken = set(session.frame_ids)
        before = [index for index in range(session.notes["next"]) if recording.ids[index] in taken]
        session.notes.setdefault("pictured", before)
        return session
    session = SceneSession(
        model,
        processor,
        merging=arguments.merging,
        threshold=arguments.threshold,
        voxel_size=arguments.voxel_size,
        labeler=labeler,
    )
    session.notes = {"plan": plan, "next": 0, "skipped": [], "pictured": []}
    return session


def scan(session: "SceneSession", recording: "Recording", arguments: argparse.Namespace) -> None:
    """Takes in the frames that the session does not have yet, and writes their pictures."""
    from tqdm.auto import tqdm

    from ..scenes.files import draw_scene_frame

    files = picture_files(recording, arguments.output)
    start = session.notes["next"]
    if start:
        print(f"going on at frame {start} of {len(recording)}")
    bar = tqdm(range(start, len(recording)), initial=start, total=len(recording), unit="frame")
    with StopSignals("this frame") as signals:
        for index in bar:
            try:
                frame = recording[index]
                result = session.update(frame)
            except ValueError as error:
                if arguments.strict:
                    raise
                # A tracker loses its camera now and then; such a frame says nothing of the scene.
                session.notes["skipped"].append(str(error))
                bar.write(f"skipped: {error}")
            else:
                with new_file(files[index]) as partial:
                    draw_scene_frame(frame.image, result).save(partial, quality=90)
                session.notes["pictured"].append(index)
                bar.set_postfix(objects=len(session.bank))
            session.notes["next"] = index + 1
            if (index + 1) % arguments.save_every == 0 or signals.number:
                session.save(arguments.output / SESSION_FILE)
            if signals.number:
                bar.close()
                raise Stopped(signals.number)
    session.save(arguments.output / SESSION_FILE)


def picture_files(recording: "Recording", output: Path) -> list[Path]:
    """File of each frame's picture."""
    return [output / "frames" / f"{name}.jpg" for name in unique_names(map(file_name, recording.ids))]


def write_results(session: "SceneSession", recording: "Recording", arguments: argparse.Namespace) -> None:
    """Writes cloud, objects, animation and perhaps the Rerun file, and says where."""
    from ..scenes.files import animation_format, object_to_json, write_animation, write_scene_cloud

    objects = [item for item in session.objects(min_views=arguments.min_views) if item.score > arguments.min_score]
    objects, extra = name_objects(session, objects, arguments)
    out = arguments.output
    write_scene_cloud(out / "scene.ply", session, objects)
    skipped = session.notes["skipped"]
    content = {
        "source": str(arguments.source),
        "layout": recording.kind,
        "checkpoint": arguments.checkpoint,
        "merging": session.merging.name,
        "threshold": session.threshold,
        "min_score": arguments.min_score,
        "min_views": arguments.min_views,
        "voxel_size": session.voxel_size,
        "coordinates": "world, metres, z up",
        "num_frames": session.num_frames,
        "skipped": skipped,
        "objects": [object_to_json(item) for item in objects],
        **extra,
    }
    write_text(out / "objects.json", json.dumps(content, indent=2) + "\n")
    written = [out / "scene.ply", out / "objects.json", out / "frames"]
    kind = animation_format(arguments.animation)
    if kind != "none":
        step = -(-session.num_frames // MAX_ANIMATED)
        pictures = picture_files(recording, out)
        files = [pictures[index] for index in session.notes["pictured"][::step]]
        written.append(out / f"scene.{kind}")
        write_animation(written[-1], files)
    if arguments.rerun:
        from ..scenes.rerun_file import write_rerun

        written.append(out / "scene.rrd")
        write_rerun(written[-1], session, objects, recording)
    if skipped:
        print(f"{len(skipped)} of {len(recording)} frames were skipped; objects.json says why")
    print(f"{session.num_frames} frames, {len(objects)} objects -> {', '.join(str(path) for path in written)}")
    for text, matches in extra.get("found", {}).items():
        print(
            f"{text}:"
            + "".join(f"\n  object {item['id']} ({item['name']}) {item['similarity']:.3f}" for item in matches)
        )


def name_objects(
    session: "SceneSession", objects: list["SceneObject"], arguments: argparse.Namespace
) -> tuple[list["SceneObject"], dict[str, Any]]:
    """The objects with their names in the user's words, and what objects.json says of the questions."""
    if session.labeler is None or arguments.labeler is None:
        return objects, {}
    extra: dict[str, Any] = {"labeler": {**session.labeler.settings, "templates": session.labeler.templates}}
    if arguments.labels is not None:
        labels = session.label(arguments.labels, arguments.top_k)
        objects = [replace(item, name=labels[item.id]["label"]) if item.id in labels else item for item in objects]
        extra.update(
            labels=arguments.labels,
            text_labels=[{"id": item.id, **labels[item.id]} for item in objects if item.id in labels],
        )
    names = {item.id: item.name for item in objects}
    if arguments.find is not None:
        extra["found"] = {}
        for text in arguments.find:
            # Of the objects in the results alone.
            matches = [match for match in session.find(text, len(session.bank)) if match.item.id in names]
            extra["found"][text] = [
                {"id": match.item.id, "name": names[match.item.id], "similarity": match.similarity}
                for match in matches[: arguments.top_k]
            ]
    return objects, extra


if __name__ == "__main__":
    main()
