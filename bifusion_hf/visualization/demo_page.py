"""The demo page: a frame in, the annotated image and the coloured points out (Gradio, extra `demo`)."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.frame_files import read_depth, read_intrinsics, read_pose
from ..data.frames import RGBDFrame
from ..import_utils import require_package
from .cameras import CAMERA_PRESETS, nominal_intrinsics
from .demo_prediction import LOWEST_SCORE, Prediction, annotated_image, predict, viewer_distance, write_files


if TYPE_CHECKING:
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline

gr = require_package("gradio")

INTRODUCTION = """# RGB-D instance segmentation
One frame of colour and depth in, 3D object instances out. Pick a sample frame, or bring your own."""
OWN_CALIBRATION = "Own calibration"
DEFAULT_SCORE = 0.5
# Files of a visitor are deleted an hour after they were made.
CACHE_SECONDS = (600, 3600)
# Azimuth and polar angle in degrees of a viewer that looks as the camera does.
FROM_CAMERA = (90, 90)
STYLE = """
.gradio-container {max-width: 1600px !important; padding: 16px 24px !important}
#introduction h1 {margin-bottom: 0}
#status {min-height: 1.6em}
#intrinsics {gap: 8px}
#samples .thumbnail-lg {aspect-ratio: 4 / 3}
footer {display: none !important}
"""


def launch_options() -> dict[str, Any]:
    """Arguments for `Blocks.launch` that give the page its look; the fonts are Gradio's own files."""
    local = gr.themes.utils.fonts.LocalFont
    theme = gr.themes.Soft(
        primary_hue="blue",
        font=(local("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
        font_mono=(local("IBM Plex Mono", weights=(400, 700)), "monospace"),
    )
    return {"theme": theme, "css": STYLE, "footer_links": []}


def build_page(
    segmenter: "RGBDInstanceSegmentationPipeline", samples: Sequence[RGBDFrame], checkpoint: str
) -> "gr.Blocks":
    """The page.

    The network runs once for a frame, one frame at a time; score slider and class filter only paint anew.

    Args:
        segmenter: The pipeline.
        samples: Frames to pick from.
        checkpoint: Name of the checkpoint, shown in the JSON file.

    Returns:
        The page; show it with `page.launch(**launch_options())`.
    """
    with gr.Blocks(
        title="RGB-D instance segmentation", analytics_enabled=False, delete_cache=CACHE_SECONDS, fill_width=True
    ) as page:
        shown = gr.State(None, time_to_live=CACHE_SECONDS[1])
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                with gr.Tab("Sample frames"):
                    gallery = gr.Gallery(
                        [frame.image for frame in samples],
                        show_label=False,
                        columns=2,
                        height=520,
                        object_fit="cover",
                        allow_preview=False,
                        elem_id="samples",
                    )
                with gr.Tab("Your frame"):
                    upload = _upload_form()
            with gr.Column(scale=3, min_width=640):
                with gr.Row():
                    image = gr.AnnotatedImage(label="Instances", height=460, elem_id="instances")
                    points = gr.Model3D(
                        label="Points (drag to turn, scroll to zoom)",
                        height=460,
                        clear_color=(0.96, 0.97, 0.98, 1.0),
                        elem_id="points",
                    )
                status = gr.Markdown("No frame yet: pick one on the left.", elem_id="status")
                with gr.Row():
                    score = gr.Slider(
                        LOWEST_SCORE, 1, DEFAULT_SCORE, step=0.05, label="Score above", elem_id="score", scale=2
                    )
                    names = gr.Dropdown(
                        [], multiselect=True, label="Classes", info="none = all", elem_id="classes", scale=3
                    )
                with gr.Row():
                    ply = gr.DownloadButton("Points (PLY)", interactive=False, elem_id="ply")
                    segments = gr.DownloadButton("Instances (JSON)", interactive=False, elem_id="json")

        parts = [image, points, ply, segments, status]

        def run_sample(score: float, choice: gr.SelectData):
            return _run(segmenter, samples[choice.index], checkpoint, score)

        def run_upload(score: float, *fields):
            return _run(segmenter, _checked(_read_upload, *fields), checkpoint, score)

        outputs = [shown, names, *parts]
        gallery.select(run_sample, [score], outputs, concurrency_id="network", api_visibility="private")
        upload["run"].click(
            run_upload,
            [score, *(upload[name] for name in UPLOAD_FIELDS)],
            outputs,
            concurrency_id="network",
            api_visibility="private",
        )
        for event in (score.release, score.change, names.change):
            event(
                _show,
                [shown, score, names],
                parts,
                api_visibility="private",
                show_progress="hidden",
                trigger_mode="always_last",
            )
    return page


UPLOAD_FIELDS = ("image", "depth", "depth_scale", "fx", "fy", "cx", "cy", "pose")


def _upload_form() -> dict[str, Any]:
    """The components of a frame of one's own, by name, and the button `run`."""
    form: dict[str, Any] = {
        "image": gr.Image(label="Colour (registered to depth)", sources=["upload"], height=190, elem_id="color"),
        "depth": gr.File(label="Depth (16-bit PNG, TIFF, .npy)", height=110, elem_id="depth"),
        "depth_scale": gr.Number(
            None,
            label="Depth scale",
            info="units per metre: 1000 = millimetres; empty = float metres",
            minimum=0,
            elem_id="depth-scale",
        ),
        "camera": gr.Dropdown(
            [OWN_CALIBRATION, *CAMERA_PRESETS],
            value=OWN_CALIBRATION,
            label="Camera",
            info="nominal values, off by a few percent: your own calibration is better",
            elem_id="camera",
        ),
    }
    with gr.Row(elem_id="intrinsics"):
        for name in ("fx", "fy", "cx", "cy"):
            form[name] = gr.Number(None, label=name, min_width=70, elem_id=name)
    with gr.Accordion("Intrinsics file, pose", open=False):
        form["intrinsics"] = gr.File(label="Intrinsics (JSON, text, .npy)", height=110)
        form["pose"] = gr.File(label="Camera to world, 4x4, z up (JSON, text, .npy)", height=110)
    form["run"] = gr.Button("Segment", variant="primary", elem_id="run")

    numbers = [form[name] for name in ("fx", "fy", "cx", "cy")]
    for component in (form["camera"], form["depth"]):
        component.change(
            _fill_from_camera,
            [form["camera"], form["depth"], form["depth_scale"], *numbers],
            [form["depth_scale"], *numbers],
            show_progress="hidden",
        )
    form["intrinsics"].upload(_fill_from_file, [form["intrinsics"]], [form["camera"], *numbers])
    return form


def _checked(function: Callable, *arguments) -> Any:
    """Calls a function; what it refuses becomes a message on the page, with the names of files instead of paths."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        message = str(error)
        for path in (argument for argument in arguments if isinstance(argument, str) and "/" in argument):
            message = message.replace(path, Path(path).name)
        raise gr.Error(message, title="This cannot be used", duration=None, print_exception=False) from error


def _fill_from_camera(camera: str, depth: str | None, depth_scale: float | None, *numbers: float | None) -> list:
    """Depth scale and intrinsics of the chosen camera at the size of the depth image."""
    if camera == OWN_CALIBRATION:
        return [depth_scale, *numbers]
    scale = CAMERA_PRESETS[camera].depth_scale
    if depth is None:
        gr.Info("The intrinsics appear when the depth image is there: they depend on its size.")
        return [scale, None, None, None, None]
    height, width = _checked(read_depth, depth, scale).shape
    matrix = _checked(nominal_intrinsics, camera, width, height)
    return [scale, *_four_numbers(matrix)]


def _fill_from_file(path: str) -> list:
    return [OWN_CALIBRATION, *_four_numbers(_checked(read_intrinsics, path))]


def _four_numbers(matrix: np.ndarray) -> list[float]:
    return [round(float(matrix[row, column]), 3) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))]


def _read_upload(
    image: np.ndarray | None,
    depth: str | None,
    depth_scale: float | None,
    fx: float | None,
    fy: float | None,
    cx: float | None,
    cy: float | None,
    pose: str | None,
) -> RGBDFrame:
    """The frame of the form.

    Raises:
        ValueError: Something is missing or malformed.
        OSError: The depth file is no image.
    """
    required = {"colour image": image, "depth": depth, "fx": fx, "fy": fy, "cx": cx, "cy": cy}
    missing = [name for name, value in required.items() if value is None]
    if missing:
        raise ValueError(f"Missing: {', '.join(missing)}. A frame needs colour, depth and the depth's intrinsics.")
    return RGBDFrame(
        image,
        read_depth(depth, depth_scale or None),
        read_intrinsics((fx, fy, cx, cy)),
        None if pose is None else read_pose(pose),
        frame_id=Path(depth).stem,
    )


@dataclass(eq=False)
class Shown:
    """What a visitor looks at: the prediction, and the folder of its files, deleted with it."""

    prediction: Prediction
    folder: tempfile.TemporaryDirectory = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="bifusion-")
    )


def _run(segmenter: "RGBDInstanceSegmentationPipeline", frame: RGBDFrame, checkpoint: str, score: float) -> list:
    """Predicts a frame: what is shown of it, the names to filter by, and what `_show` gives."""
    started = time.perf_counter()
    shown = Shown(_checked(predict, segmenter, frame, checkpoint))
    seconds = time.perf_counter() - started
    choices = [(f"{name} ({count})", name) for name, count in shown.prediction.name_counts.items()]
    *parts, status = _show(shown, score, [])
    return [shown, gr.Dropdown(choices=choices, value=[]), *parts, f"{status} ({seconds:.1f} s)"]


def _show(shown: Shown | None, score: float, names: list[str]) -> list:
    """Image, points, both downloads and the status line for a filter."""
    if shown is None:
        return [gr.skip()] * 5
    prediction = shown.prediction
    selection = prediction.select(score, names)
    picture, colors = annotated_image(prediction, selection)
    paths = write_files(prediction, selection, Path(shown.folder.name))
    return [
        gr.AnnotatedImage(picture, color_map=colors),
        gr.Model3D(str(paths["viewer"]), camera_position=(*FROM_CAMERA, viewer_distance(prediction.frame))),
        gr.DownloadButton(value=str(paths["ply"]), interactive=True),
        gr.DownloadButton(value=str(paths["json"]), interactive=True),
        f"**{prediction.frame.frame_id}**: {len(selection.segments)} instances above {score:.2f}",
    ]
