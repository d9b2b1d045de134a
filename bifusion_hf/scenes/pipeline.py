"""The transformers pipeline "rgbd-scene-segmentation": posed RGB-D frames in, objects that stay out."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.pipelines import PIPELINE_REGISTRY, Pipeline

from ..data.frames import RGBDFrame
from ..modeling_bifusion import BiFusionForInstanceSegmentation
from ..pipeline_bifusion import frame_from_dict
from .session import SceneSession


TASK = "rgbd-scene-segmentation"
SETTINGS = (
    "merging",
    "threshold",
    "max_instances",
    "voxel_size",
    "max_objects",
    "keep_frames",
    "labeler",
    "views_per_object",
)


class RGBDSceneSegmentationPipeline(Pipeline):
    """Objects of a scene from posed RGB-D frames, in the order in which they come.

    Frames come from any iterable: `RGBDFrame`s, dicts as of the pipeline "rgbd-instance-segmentation" with a `pose`,
    rows of a data set of frames, or a `Recording`; or from a path that `open_recording` reads.

    ```python
    from transformers import pipeline
    import bifusion_hf

    scanner = pipeline("rgbd-scene-segmentation", model="path/or/id")
    for result in scanner(frames):          # one result a frame, as soon as the frame is there
        print(result["ids"], result["segmentation"].shape)
    for item in scanner.session.objects():
        print(item.id, item.label, item.score, item.num_views)
    ```

    Each frame gives what `SceneSession.update` returns; `scanner.session` is the session of the last call.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _load_video_processor = False

    def __init__(self, *args, **kwargs):
        self.session: SceneSession | None = None
        super().__init__(*args, **kwargs)
        self.model.eval()

    def _sanitize_parameters(self, **settings):
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise TypeError(f"unknown settings {unknown}; expected some of {list(SETTINGS)}")
        return settings, {}, {}

    def __call__(
        self, inputs: str | Path | Iterable[Any], *, session: SceneSession | None = None, **settings
    ) -> Iterator[dict[str, Any]]:
        """Takes frames in, lazily.

        Args:
            inputs: See the class.
            session: Go on with this one; None starts a new scene.
            settings: Of `SceneSession`, for a new scene: `merging`, `threshold`, `max_instances`, `voxel_size`,
                `max_objects`, `keep_frames`, `labeler` (a `TextLabeler`, for `session.find`), `views_per_object`.

        Returns:
            An iterator over the results of the frames.

        Raises:
            ValueError: A frame is malformed or has no pose, or the inputs are one frame alone; the message names it.
        """
        if isinstance(inputs, str | Path):
            # Readers of recordings bring scikit-image along.
            from ..data.recordings import open_recording

            inputs = open_recording(inputs)
        if isinstance(inputs, RGBDFrame | Mapping) or not isinstance(inputs, Iterable):
            raise ValueError(f"inputs is a {type(inputs).__name__}; expected an iterable of posed frames")
        chosen, _, _ = self._sanitize_parameters(**settings)
        if session is not None and chosen:
            raise ValueError(f"session and {sorted(chosen)} exclude each other: a session has its settings")
        if session is None:
            session = SceneSession(self.model, self.processor, **{**self._preprocess_params, **chosen})
        self.session = session
        return (self.postprocess(self._forward(self.preprocess(frame))) for frame in inputs)

    def preprocess(self, frame: Any) -> RGBDFrame:
        """The frame of an input."""
        return frame if isinstance(frame, RGBDFrame) else frame_from_dict(frame)

    def _forward(self, frame: RGBDFrame) -> dict[str, Any]:
        return self.session.update(frame)

    def postprocess(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result as it is."""
        return result


def register() -> None:
    """Makes the task known to `transformers.pipeline`; once is enough."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=RGBDSceneSegmentationPipeline,
            pt_model=BiFusionForInstanceSegmentation,
            type="multimodal",
        )
