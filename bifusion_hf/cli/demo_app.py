"""bifusion-demo: a page in the browser that segments RGB-D frames; also as a folder for a Hugging Face Space."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import assets
from .entry import command
from .labeler_options import add_labeler_options, load_labeler
from .parser import DEVICE_HELP, CommandParser
from .predict import load_segmenter


if TYPE_CHECKING:
    from ..data.frames import RGBDFrame
    from ..labeling import TextLabeler

EXAMPLES = """examples:
  bifusion-demo                                     then open http://127.0.0.1:7860
  bifusion-demo --checkpoint outputs/tiny/best --data rooms
  bifusion-demo --checkpoint user/model --space my-space
"""
# Number of frames to pick from, spread over the data set, where no rows are given; so many of them are of several
# sensors where the frames are the package's own.
SAMPLES, SENSOR_ROWS = 8, (1, 3, 4, 5)


@command("bifusion-demo")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.space is not None:
        from ..demo.space import write_space

        files = write_space(arguments.space, arguments.checkpoint)
        print(f"{', '.join(str(path) for path in files)}\nPush this folder to a Space of the Gradio SDK.")
        return
    launch(
        arguments.checkpoint,
        read_samples(arguments.data, arguments.split, arguments.rows),
        arguments.device,
        load_labeler(arguments, arguments.device),
        server_name=arguments.host,
        server_port=arguments.port,
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-demo",
        description="Shows a page where one drops a frame or picks a sample, and sees its instances over the image "
        "and over the points. Needs the extra demo; works offline.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "--checkpoint",
        default=str(assets.SAMPLE_CHECKPOINT),
        help="folder, or id on the Hub (org/name or org/name@revision); by default the checkpoint that comes with the "
        "package",
    )
    parser.add_argument("--data", default="sample", help="frames to pick from: folder, id on the Hub, or 'sample'")
    parser.add_argument("--split", default="val", help="default: val")
    parser.add_argument("--rows", type=int, nargs="+", help=f"rows to pick from; {SAMPLES} by default")
    add_labeler_options(parser.add_argument_group("a field for names in the visitor's own words"))
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument("--host", help="address to listen on, 0.0.0.0 = all; this machine's own by default")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--space", type=Path, metavar="DIR", help="write a Hugging Face Space there and stop")
    return parser


def read_samples(data: str, split: str, rows: Sequence[int] | None = None) -> list["RGBDFrame"]:
    """Frames to pick from.

    Args:
        data: See `load_frames`.
        split: Its split.
        rows: Their rows; `SAMPLES` at even distances by default, of "sample" fewer and `SENSOR_ROWS`, without poses.

    Raises:
        ValueError: No such row.
    """
    from ..data.frames import frame_from_row, load_frames

    frames = load_frames(data, split)
    of_sensors: list[RGBDFrame] = []
    if rows is None:
        if data == "sample":
            others = load_frames(assets.SENSOR_FRAMES, "val")
            # As from a camera alone.
            of_sensors = [frame_from_row({**others[row], "camera_to_world": None}) for row in SENSOR_ROWS]
        count = min(SAMPLES - len(of_sensors), len(frames))
        rows = [index * len(frames) // count for index in range(count)]
    for row in rows:
        if not 0 <= row < len(frames):
            raise ValueError(f"--rows {row}: {data} has {len(frames)} rows in {split!r}")
    return [frame_from_row(frames[row]) for row in rows] + of_sensors


def launch(
    checkpoint: str,
    samples: Sequence["RGBDFrame"] | None = None,
    device: str | None = None,
    labeler: "TextLabeler | None" = None,
    **options: Any,
) -> Any:
    """Loads a checkpoint and serves the page.

    Args:
        checkpoint: See `load_pretrained`.
        samples: Frames to pick from; those that the package carries by default.
        device: `torch.device` string; None = a GPU if there is one.
        labeler: Names instances by the words that a visitor enters; None = without a field for them.
        options: Further arguments of `gradio.Blocks.launch`.

    Returns:
        What `gradio.Blocks.launch` returns, when it does: `prevent_thread_lock` makes it return at once.
    """
    # Gradio reads it when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "0"
    _reach_without_proxy(options.get("server_name"))
    from ..demo.serving import serve_from_own_folder, serving_options

    serve_from_own_folder()
    from ..demo.page import build_page, launch_options

    if samples is None:
        samples = read_samples("sample", "val")
    page = build_page(load_segmenter(checkpoint, device), samples, Path(checkpoint).name, labeler)
    # Quiet: what Gradio says is an offer of a link over its own servers, which the page does not use.
    waiting = {"quiet": True, "prevent_thread_lock": True}
    try:
        started = page.queue().launch(**{**launch_options(), **serving_options(), **options, **waiting})
    except ValueError as error:
        if "share=True" not in str(error):
            raise
        raise ValueError(
            "the page does not answer at its own address; a proxy of this machine may be in between (NO_PROXY), or "
            "--host is no address of it"
        ) from error
    print(f"The page: {page.local_url}  (Ctrl-C ends it)", flush=True)
    if not options.get("prevent_thread_lock"):
        page.block_thread()
    return started


def _reach_without_proxy(host: str | None) -> None:
    """Lets Gradio ask itself whether it answers without a proxy in between, which does not know this machine."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [entry for entry in os.environ.get(name, "").split(",") if entry]
        known += [entry for entry in ("localhost", "127.0.0.1", host) if entry and entry not in known]
        os.environ[name] = ",".join(known)


if __name__ == "__main__":
    main()
