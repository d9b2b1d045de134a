"""The demo page: a frame in, its instances over image and points out (Gradio, extra `demo`).

Image and points are one component, `view.html` and `view.js`: the view of the points stays where it is when the filter
changes, which Gradio's own viewer does not let it.
"""

import html
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.frames import RGBDFrame
from ..import_utils import require_package
from ..io.memory import give_back_freed_memory
from ..io.sanity import collected_doubts
from ..labeling import TextLabeler
from ..visualization.cameras import CAMERA_PRESETS
from .prediction import (
    LOWEST_SCORE,
    Prediction,
    Selection,
    cloud_values,
    name_by_text,
    paint_values,
    predict,
    write_files,
)
from .serving import FOLDER_VARIABLE, UPLOAD_MEBIBYTES, delete_old_files
from .upload import (
    camera_fields,
    camera_text,
    read_upload,
)


if TYPE_CHECKING:
    from ..pipeline_bifusion import RGBDInstanceSegmentationPipeline

gr = require_package("gradio")

INTRODUCTION = """# RGB-D instance segmentation
One frame of colour and depth in, 3D object instances out. Pick a sample frame, or bring your own."""
# Also after an hour, or when many others came since: see `KEPT_VISITORS`.
NOTHING_SHOWN = "No frame here: pick one."
OWN_CALIBRATION = "own calibration"
# Of floating point there are no units; for Gradio, None is no choice at all.
METRES = "metres"
# Units per metre by name.
DEPTH_SCALES = [("millimetres (1000)", 1000.0), ("TUM RGB-D (5000)", 5000.0), ("metres, floating point", METRES)]
DEFAULT_SCORE = 0.5
# Files of a visitor are deleted an hour after they were made.
CACHE_SECONDS = (600, 3600)
STYLE, VIEW, VIEW_CODE = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.css", "view.html", "view.js")
)
# As soon as a sample is picked, where the result lies beyond the screen's edge.
SHOW_RESULT = """() => {
    const result = document.querySelector("#result");
    if (result.getBoundingClientRect().bottom > innerHeight) result.scrollIntoView({behavior: "smooth"});
}"""


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
    segmenter: "RGBDInstanceSegmentationPipeline",
    samples: Sequence[RGBDFrame],
    checkpoint: str,
    labeler: TextLabeler | None = None,
) -> "gr.Blocks":
    """The page.

    The network runs once for a frame, one frame at a time; score slider and class filter only paint anew.

    Args:
        segmenter: The pipeline.
        samples: Frames to pick from.
        checkpoint: Name of the checkpoint, shown in the JSON file.
        labeler: Names the instances by the words that a visitor enters; None = there is no field for them.

    Returns:
        The page; show it with `page.launch(**launch_options())`.
    """
    with gr.Blocks(
        title="RGB-D instance segmentation", analytics_enabled=False, delete_cache=CACHE_SECONDS, fill_width=True
    ) as page:
        shown = gr.State(None, time_to_live=CACHE_SECONDS[1])
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                with gr.Tab("Sample frames"):
                    gallery = gr.Gallery(
                        [frame.image for frame in samples],
                        show_label=False,
                        columns=2,
                        height="58vh",
                        object_fit="cover",
                        allow_preview=False,
                        buttons=[],
                        elem_id="samples",
                    )
                with gr.Tab("Your frame"):
                    upload = _upload_form()
            with gr.Column(scale=5, min_width=320):
                result = gr.HTML(
                    html_template=VIEW,
                    js_on_load=VIEW_CODE,
                    apply_default_css=False,
                    elem_id="result",
                    cloud=None,
                    paint=None,
                )
                status = gr.Markdown(NOTHING_SHOWN, elem_id="status")
                with gr.Row():
                    score = gr.Slider(
                        LOWEST_SCORE, 1, DEFAULT_SCORE, step=0.05, label="Score above", elem_id="score", scale=2
                    )
                    names = gr.Dropdown(
                        [], multiselect=True, label="Classes", info="none = all", elem_id="classes", scale=3
                    )
                words = gr.Textbox(
                    label="Your own names",
                    placeholder="mug, keyboard, office chair, ...",
                    info="Enter names them; empty = the network's own.",
                    max_lines=2,
                    visible=labeler is not None,
                    elem_id="words",
                )
                with gr.Row():
                    ply = gr.DownloadButton("Points (PLY)", interactive=False, elem_id="ply")
                    segments = gr.DownloadButton("Instances (JSON)", interactive=False, elem_id="json")

        parts = [result, ply, segments, status]

        def tidy() -> None:
            give_back_freed_memory()
            own = (getattr(block, "keep_in_cache", ()) for block in page.blocks.values())
            delete_old_files(CACHE_SECONDS[1], set().union(*own))

        def run_sample(score: float, words: str, choice: gr.SelectData):
            tidy()
            return _run(segmenter, checkpoint, score, lambda: samples[choice.index], words, labeler)

        def run_upload(score: float, words: str, *fields):
            tidy()
            return _run(segmenter, checkpoint, score, lambda: read_form(*fields), words, labeler)

        def run_words(shown: Shown | None, score: float, words: str):
            return _rename(shown, score, words, labeler)

        running = {
            "outputs": [shown, names, *parts],
            "show_progress_on": [result],
            "concurrency_id": "network",
            "api_visibility": "private",
        }
        gallery.select(run_sample, [score, words], **running)
        gallery.select(None, js=SHOW_RESULT, api_visibility="private")
        words.submit(run_words, [shown, score, words], **{**running, "outputs": [names, *parts]})
        upload["run"].click(run_upload, [score, words, *(upload[name] for name in UPLOAD_FIELDS)], **running)
        filtered = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        score.change(_show_score, [shown, score, names], [names, *parts], **filtered)
        names.input(_show, [shown, score, names], parts, **filtered)
    return page


# Arguments of `read_form`.
UPLOAD_FIELDS = ("image", "depth", "depth_scale", "intrinsics", "pose")


def read_form(image: Any, depth: str | None, depth_scale: Any, intrinsics: str, pose: str | None) -> RGBDFrame:
    """The frame of the form; see `read_upload`."""
    return read_upload(image, depth, None if depth_scale == METRES else depth_scale, intrinsics, pose)


def _upload_form() -> dict[str, Any]:
    """The components of a frame of one's own, by name, and the button `run`."""
    form: dict[str, Any] = {}
    gr.Markdown(f"Colour registered to depth; depth as 16-bit PNG, TIFF or .npy; to {UPLOAD_MEBIBYTES} MiB.")
    with gr.Row():
        form["image"] = gr.Image(
            label="Colour",
            sources=["upload"],
            # The file itself: Gradio, too, changes what it does not know.
            type="filepath",
            image_mode=None,
            buttons=[],
            height=130,
            min_width=140,
            elem_id="color",
        )
        form["depth"] = gr.File(label="Depth", height=130, min_width=140, elem_id="depth")
    with gr.Row():
        form["camera"] = gr.Dropdown(
            [OWN_CALIBRATION, *CAMERA_PRESETS], value=OWN_CALIBRATION, label="Camera", min_width=140, elem_id="camera"
        )
        form["depth_scale"] = gr.Dropdown(
            DEPTH_SCALES, value=1000.0, label="Depth in", min_width=140, elem_id="depth-scale"
        )
    form["intrinsics"] = gr.Textbox(
        label="Intrinsics of the depth image",
        placeholder="fx fy cx cy, a 3x3 matrix, or JSON",
        info="A camera's name fills in nominal values, off by a few percent.",
        max_lines=4,
        elem_id="intrinsics",
    )
    with gr.Accordion("Intrinsics and pose from files", open=False):
        form["file"] = gr.File(label="Intrinsics (JSON, text, .npy)", height=110)
        form["pose"] = gr.File(label="Camera to world, 4x4, z up (JSON, text, .npy)", height=110)
    form["run"] = gr.Button("Segment", variant="primary", elem_id="run")

    for component in (form["camera"], form["depth"]):
        component.change(
            _fill_from_camera,
            [form["camera"], form["depth"]],
            [form["depth_scale"], form["intrinsics"]],
            show_progress="hidden",
            api_visibility="private",
        )
    form["file"].upload(
        _fill_from_file, [form["file"]], [form["camera"], form["intrinsics"]], api_visibility="private"
    )
    return form


def _fill_from_camera(camera: str, depth: str | None) -> tuple:
    """Depth scale and intrinsics of the chosen camera."""
    if camera == OWN_CALIBRATION:
        return gr.skip(), gr.skip()
    if depth is None:
        gr.Info("The intrinsics appear with the depth image: they depend on its size.")
    try:
        return camera_fields(camera, depth)
    except ValueError as error:
        _refuse(error)
        return gr.skip(), ""


def _fill_from_file(path: str) -> tuple:
    """The intrinsics of a file."""
    try:
        return OWN_CALIBRATION, camera_text(path)
    except ValueError as error:
        _refuse(error)
        return gr.skip(), gr.skip()


def _refuse(error: Exception) -> None:
    """Shows a message that stays until it is closed."""
    gr.Warning(html.escape(str(error)), title="This cannot be used", duration=None)


@dataclass(eq=False)
class Shown:
    """What a visitor looks at: the prediction, and the folder of its files, deleted with it."""

    prediction: Prediction
    folder: tempfile.TemporaryDirectory | None = None

    def new_folder(self) -> Path:
        """An empty folder for the files of a selection; those of the last one go.

        Browsers keep what they have by its address: another selection needs another.
        """
        if self.folder is not None:
            self.folder.cleanup()
        # What Gradio finds in its own folder it serves from there; it would copy what lies elsewhere.
        self.folder = tempfile.TemporaryDirectory(prefix="shown-", dir=os.environ.get(FOLDER_VARIABLE))
        return Path(self.folder.name)


def _run(
    segmenter: "RGBDInstanceSegmentationPipeline",
    checkpoint: str,
    score: float,
    read: Callable[[], RGBDFrame],
    words: str = "",
    labeler: TextLabeler | None = None,
) -> list:
    """Predicts a frame: what is shown of it, the names to filter by, and what `_parts` gives."""
    try:
        with collected_doubts() as doubts:
            shown = Shown(predict(segmenter, read(), checkpoint))
            if labeler is not None:
                name_by_text(shown.prediction, words, labeler)
    except (ValueError, OSError) as error:
        _refuse(error)
        return [gr.skip()] * 6
    for doubt in doubts:
        gr.Warning(html.escape(doubt), title="This may be wrong", duration=None)
    selection = shown.prediction.select(score)
    return [shown, _choices(selection), *_parts(shown, selection, cloud=cloud_values(shown.prediction))]


def _rename(shown: Shown | None, score: float, words: str, labeler: TextLabeler) -> list:
    """The names to filter by, and what `_parts` gives, under the visitor's names."""
    if shown is None:
        return [gr.skip()] * 5
    try:
        name_by_text(shown.prediction, words, labeler)
    except ValueError as error:
        _refuse(error)
        return [gr.skip()] * 5
    return _show_score(shown, score, [])


def _show_score(shown: Shown | None, score: float, names: list[str]) -> list:
    """The names to filter by, which depend on the score, and what `_parts` gives."""
    if shown is None:
        return [*[gr.skip()] * 4, NOTHING_SHOWN]
    selection = shown.prediction.select(score, names)
    return [_choices(selection), *_parts(shown, selection)]


def _show(shown: Shown | None, score: float, names: list[str]) -> list:
    """What `_parts` gives for a filter."""
    if shown is None:
        return [*[gr.skip()] * 3, NOTHING_SHOWN]
    return _parts(shown, shown.prediction.select(score, names))


def _choices(selection: Selection) -> "gr.Dropdown":
    # A name that was chosen stays so without instances above the score.
    counts = {**dict.fromkeys(selection.names, 0), **selection.name_counts}
    choices = [(f"{name} ({count})", name) for name, count in sorted(counts.items())]
    return gr.Dropdown(choices=choices, value=selection.names, multiselect=True)


def _parts(shown: Shown, selection: Selection, **cloud: Any) -> list:
    """The view, both downloads and the status line.

    Args:
        shown: What the visitor looks at.
        selection: The part of it that passes the filter.
        cloud: `cloud` of a frame that was not shown before.
    """
    prediction = shown.prediction
    paths = write_files(prediction, selection, shown.new_folder())
    total = sum(selection.name_counts.values())
    shown_of = f"{len(selection.segments)} of " if selection.names else ""
    return [
        gr.HTML(paint=paint_values(prediction, selection), **cloud),
        gr.DownloadButton(value=str(paths["ply"]), interactive=True),
        gr.DownloadButton(value=str(paths["json"]), interactive=True),
        f"**{prediction.frame.frame_id}**: {shown_of}{total} instances above {selection.threshold:.2f}",
    ]
