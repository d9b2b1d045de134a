"""The processor: from RGB-D frames to the network's inputs, and from its outputs to instances."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from .configuration_bifusion import BiFusionConfig
from .data.collator import FrameFeatures, Sample, collate_samples, to_numpy
from .data.frames import RGBDFrame
from .data.image_size import fit_image
from .data.inputs import frames_from_columns
from .data.point_labels import labels_of_points
from .data.point_sample import points_of_pixels
from .io.hub_files import checkpoint_place, naming
from .io.sanity import check_fraction
from .labels import NONE
from .layers.frame_batch import FORWARD_INPUTS
from .postprocessing import (
    SCORE_THRESHOLD,
    describe_class,
    instances_of_frame,
    mask_classes,
    real_queries,
    semantics_of_frame,
    unpad_frames,
)
from .presets import PROCESSOR_PRESETS
from .superpoints.completion import complete_superpoints


# From here on most names of the sample checkpoint are right (model_cards/results/semantic_names.json).
NAME_THRESHOLD = 0.55

# The image statistics of CLIP's training.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# The colour statistics of ScanNet's point clouds, as ESAM uses them.
COLOR_MEAN = (0.47793125906962, 0.4303257521323044, 0.3749598901421883)
COLOR_STD = (0.2834475483823543, 0.27566157565723015, 0.27018971370874995)


class BiFusionProcessor(ProcessorMixin):
    """Makes the inputs of BiFusion from RGB-D frames and instances from its outputs.

    Args:
        num_points: Points sampled from a frame; all where it has fewer. Instances need more than `num_points / 200`.
        image_size: Of the network's image: its shorter side, the other follows from the frame's aspect; or
            [height, width], then frames of another aspect are refused; None keeps each frame's own size.
        size_divisor: Without a fixed [height, width], both sides are rounded to multiples of it: the patch size of the
            image tower.
        image_mean, image_std: Of the image branch, fractions of 255; CLIP's by default.
        color_mean, color_std: Of the point colours, fractions of 255; those of ESAM by default.
        stuff_classes: Semantic classes that have no instances.
        class_to_label: Instance label of each semantic class, -1 for classes whose instances are left out; None =
            class-agnostic, every instance has label 0.
        label_names: Names of the instance labels.
        num_semantic_labels: Number of semantic classes.
        num_superpoints: Superpoints aimed at where a frame brings none.
        superpoint_color_blur: Metres by which colour is blurred for them, so that finer texture makes no superpoints.
        estimate_up: Where a frame has no pose, turn its points upright by what they show (`data.gravity`), if that is
            clear enough; else, and where off, the network gets the camera's axes. Results come in the input's frame.
        reference_depth: Metres; the network gets a frame whose median depth is smaller enlarged to it, so that close
            things, which have more pixels, have more voxels too. Results stay in metres. 0 = every frame in its size.
        sampling_seed: Seed of the point sampling at inference.
        mask_threshold: A point with a higher mask probability belongs to the instance.
        max_instances: Largest number of instances of a frame.
        nms_kernel: Of the matrix non-maximum suppression, `"linear"` or `"gaussian"`.
        nms_sigma: Of the Gaussian kernel.
        part_gap: Metres by which parts of a mask lie apart that are instances of their own (`mask_parts`); 0 leaves
            masks whole, as do checkpoints whose files do not say.
        name_threshold: Where labels do not tell classes apart, an instance is called by the semantic class of its
            points from this probability on.

    Raises:
        ValueError: A value is malformed.
    """

    # transformers' Trainer asks the tokenizer of every processor for these.
    tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None, pad_token_id=None)

    def __init__(
        self,
        num_points: int = 20000,
        image_size: int | Sequence[int] | None = None,
        size_divisor: int = 1,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        color_mean: Sequence[float] = COLOR_MEAN,
        color_std: Sequence[float] = COLOR_STD,
        stuff_classes: Sequence[int] = (0, 1),
        class_to_label: Sequence[int] | None = None,
        label_names: Sequence[str] = ("object",),
        num_semantic_labels: int = 200,
        num_superpoints: int = 300,
        superpoint_color_blur: float = 0.0,
        estimate_up: bool = True,
        reference_depth: float = 0.0,
        sampling_seed: int = 0,
        mask_threshold: float = 0.4,
        max_instances: int = 100,
        nms_kernel: str = "linear",
        nms_sigma: float = 2.0,
        part_gap: float = 0.05,
        name_threshold: float = NAME_THRESHOLD,
    ):
        super().__init__()
        self.num_points = num_points
        self.image_size = image_size if image_size is None or isinstance(image_size, int) else list(image_size)
        self.size_divisor = size_divisor
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.color_mean, self.color_std = list(color_mean), list(color_std)
        self.stuff_classes = list(stuff_classes)
        self.class_to_label = None if class_to_label is None else list(class_to_label)
        self.label_names = list(label_names)
        self.num_semantic_labels = num_semantic_labels
        self.num_superpoints = num_superpoints
        self.superpoint_color_blur = superpoint_color_blur
        self.estimate_up = estimate_up
        self.reference_depth = reference_depth
        self.sampling_seed = sampling_seed
        self.mask_threshold = mask_threshold
        self.max_instances = max_instances
        self.nms_kernel = nms_kernel
        self.nms_sigma = nms_sigma
        self.part_gap = part_gap
        self.name_threshold = name_threshold
        self._check()

    def _check(self):
        def expect(name: str, good: bool, expected: str):
            if not good:
                raise ValueError(f"BiFusionProcessor: {name} is {getattr(self, name)!r}; expected {expected}")

        expect("num_points", self.num_points >= 1, "at least 1")
        size = [1, 1] if self.image_size is None else self.image_size
        size = [size, size] if isinstance(size, int) else size
        expect("image_size", len(size) == 2 and min(size) > 0, "a positive side, [height, width] or None")
        expect("size_divisor", self.size_divisor >= 1, "at least 1")
        for name in ("image_mean", "image_std", "color_mean", "color_std"):
            expect(name, len(getattr(self, name)) == 3, "three numbers")
        expect("image_std", min(self.image_std) > 0, "positive numbers")
        expect("color_std", min(self.color_std) > 0, "positive numbers")
        expect("superpoint_color_blur", self.superpoint_color_blur >= 0, "metres, at least 0")
        expect("reference_depth", self.reference_depth >= 0, "metres, at least 0")
        expect(
            "stuff_classes",
            all(0 <= index < self.num_semantic_labels for index in self.stuff_classes),
            "semantic classes",
        )
        expect("part_gap", self.part_gap >= 0, "metres, at least 0")
        expect("name_threshold", 0 <= self.name_threshold <= 1, "a probability")
        expect("nms_kernel", self.nms_kernel in ("linear", "gaussian"), "'linear' or 'gaussian'")
        labels = self.class_to_label
        if labels is not None:
            expect("class_to_label", len(labels) == self.num_semantic_labels, f"{self.num_semantic_labels} entries")
            names = range(-1, len(self.label_names))
            expect("class_to_label", set(labels) <= set(names), f"labels below {len(self.label_names)} (label_names)")

    @classmethod
    def from_config(cls, config: BiFusionConfig, **overrides: Any) -> "BiFusionProcessor":
        """The processor that belongs to a network, with defaults for what the network does not say.

        With one label the processor is class-agnostic; with as many labels as there are classes beside stuff, the
        labels are those classes in order.

        Args:
            config: Gives label names and patch size. One that was read from a file of release 0.1 gives what that
                held of the processor's arguments too.
            overrides: Arguments of the processor that replace the others.

        Raises:
            ValueError: Any other number of labels without `class_to_label`.
        """
        values = {
            **config.old_processor_fields,
            "size_divisor": max(config.image_patch_size),
            "num_semantic_labels": config.num_semantic_labels,
            "label_names": [config.id2label[label] for label in range(config.num_labels)],
            **overrides,
        }
        stuff = values.get("stuff_classes", (0, 1))
        if config.num_labels > 1 and "class_to_label" not in values:
            classes = range(config.num_semantic_labels)
            things = [index for index in classes if index not in stuff]
            if config.num_labels != len(things):
                raise ValueError(
                    f"the model has {config.num_labels} labels and {len(things)} classes beside stuff; give "
                    "class_to_label, the label of each semantic class (-1 = none)"
                )
            values["class_to_label"] = [things.index(index) if index in things else NONE for index in classes]
        return cls(**values)

    @classmethod
    def from_preset(cls, name: str, config: BiFusionConfig | None = None, **overrides: Any) -> "BiFusionProcessor":
        """The processor of a named variant.

        Args:
            name: As in `BiFusionConfig.from_preset`.
            config: Of the network, where it is not the preset's own.
            overrides: Arguments of the processor that replace the preset's.

        Raises:
            ValueError: There is no preset of that name, or see `from_config`.
        """
        if name not in PROCESSOR_PRESETS:
            raise ValueError(f"no preset {name!r}; there are {sorted(PROCESSOR_PRESETS)}")
        config = BiFusionConfig.from_preset(name) if config is None else config
        return cls.from_config(config, **{**PROCESSOR_PRESETS[name], **overrides})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "BiFusionProcessor":
        """As in transformers.

        Raises:
            ValueError: A value is none that the argument can have; the message begins with the checkpoint's name.
        """
        with naming(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers, and `"sample"` is the package's own checkpoint; OSError where there is no
        `processor_config.json`, instead of a default processor.
        """
        pretrained_model_name_or_path = checkpoint_place(pretrained_model_name_or_path)
        values, unused = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            raise OSError(
                f"{pretrained_model_name_or_path} has no processor_config.json. Save the processor of its training "
                "there (transformers' Trainer does with processing_class=processor), or one of "
                "`BiFusionProcessor.from_config(config, num_points=..., image_size=...)`"
            )
        # Before there was this choice masks stayed whole, and so were measured.
        return {"part_gap": 0.0, **values}, unused

    @property
    def model_input_names(self) -> list[str]:
        """Arguments of the network's forward that a batch holds beside labels."""
        return list(FORWARD_INPUTS)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """Does nothing: releases carry `hub/remote_code_shim.py`, not copies of the package's modules."""

    @property
    def min_instance_points(self) -> float:
        """Only instances of more points are given and evaluated: 100 at 20,000 points a frame."""
        return self.num_points / 200

    def __call__(
        self,
        images: Any,
        depth: Any,
        intrinsics: Any,
        camera_to_world: Any = None,
        depth_scale: float | Sequence[float] | None = None,
        superpoints: Any = None,
        instance_masks: Any = None,
        semantic_masks: Any = None,
        frame_ids: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
        poses: Any = None,
    ) -> FrameFeatures:
        """Prepares one frame or a batch of frames; sampling is deterministic.

        Every argument is one frame's value, or a list (or stacked array) of them. Optional ones may be None for some
        frames of a list.

        Args:
            images: uint8 [H, W, 3] RGB (array, tensor, PIL image or file), registered to depth.
            depth: [H, W] metres along the optical axis (array, tensor, PIL image or file); 0, negative, NaN and inf
                mean "no measurement".
            intrinsics: [3, 3] of the depth image, pixel centres at integers, or a mapping or file for `read_camera`;
                one for all frames, or one for each.
            camera_to_world: [4, 4] pose, z up. Without one the input's frame is the camera's axes relabelled x
                right, y forward, z up, and the network's is turned upright where `estimate_up` can.
            depth_scale: Units per metre by which depth is divided; needed where depth is of integers.
            superpoints: int [H, W], -1 = none; found from the frame where missing.
            instance_masks: int [H, W], -1 = none; adds `mask_labels` and `class_labels`.
            semantic_masks: int [H, W] class index, -1 = unlabelled; adds `semantic_labels`.
            frame_ids: Names used in messages.
            return_tensors: `"pt"` or `"np"`.
            poses: The name of release 0.1 for `camera_to_world`.

        Returns:
            The batch that `data.collator.collate_samples` describes.

        Raises:
            ValueError: An input is malformed; the message names the frame and the field.
        """
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}; expected 'pt' or 'np'")
        if poses is not None and camera_to_world is not None:
            raise ValueError("camera_to_world and poses are the same; expected one")
        columns = {
            "image": images,
            "depth": depth,
            "intrinsics": intrinsics,
            "camera_to_world": poses if camera_to_world is None else camera_to_world,
            "depth_scale": depth_scale,
            "superpoints": superpoints,
            "instance": instance_masks,
            "semantic": semantic_masks,
            "frame_id": frame_ids,
        }
        batch = self.collate([self.prepare_frame(frame) for frame in frames_from_columns(columns)])
        return FrameFeatures(batch if return_tensors == "pt" else to_numpy(batch))

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Normalises colours and pads the samples into a batch; see `data.collator.collate_samples`."""
        return collate_samples(
            samples,
            image_mean=self.image_mean,
            image_std=self.image_std,
            color_mean=self.color_mean,
            color_std=self.color_std,
        )

    def prepare_frame(self, frame: RGBDFrame, rng: np.random.Generator | None = None) -> Sample:
        """Samples the points of a frame and ties them to their pixels.

        Args:
            frame: The frame.
            rng: Source of the sampling; None = a new generator of `sampling_seed`, so that the same frame always
                gives the same points.

        Returns:
            A dict of numpy arrays for N = min(num_points, measured pixels) points in the order of their pixels:
            `points` float32 [N, 3] metres, z up: those of the frame minus `point_offset` float32 [3], their mean,
            turned by `point_rotation` float32 [3, 3], the identity unless `up_source` ("pose", "estimated" or
            "camera") is "estimated", and times `point_scale` float32, 1 unless `reference_depth` enlarges the frame;
            `point_rgb` uint8 [N, 3]; `point_pixels` float32 [N, 2], the pixel's centre as a
            fraction of width and height; `point_visible` bool [N]; `superpoint_ids` int64 [N], 0..S-1; `image` uint8
            [H, W, 3] of the network's size; `camera_rotation` float32 [3, 3], camera axes to point axes; where there
            are labels `instance` int64 [N] (-1 = none), `class_labels` int64 [M] and `semantic` int64 [N] (-100 =
            ignore); `pixel_indices` int64 [N], `depth_size` (H, W), `superpoint_map` int32 [H, W] (-1 = none),
            `frame_id`.

        Raises:
            ValueError: The frame does not fit the processor; the message names the frame.
        """
        pixels = self.choose_points(np.flatnonzero(frame.depth > 0), rng)
        superpoints = complete_superpoints(
            frame.superpoints,
            frame.image,
            frame.depth,
            frame.intrinsics,
            num_segments=self.num_superpoints,
            color_blur=self.superpoint_color_blur,
        )
        sample = {
            **points_of_pixels(
                frame, pixels, superpoints, estimate_up=self.estimate_up, reference_depth=self.reference_depth
            ),
            "image": self.resize(frame.image, frame.frame_id),
            "frame_id": frame.frame_id,
        }
        instance, semantic = (
            None if labels is None else labels.reshape(-1)[pixels] for labels in (frame.instance, frame.semantic)
        )
        sample.update(self.point_labels(instance, semantic, frame.frame_id))
        return sample

    def choose_points(self, candidates: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """`num_points` of the candidates [P] without replacement, in their order; all where there are fewer.

        `rng` None = a new generator of `sampling_seed`.
        """
        if len(candidates) <= self.num_points:
            return candidates
        rng = np.random.default_rng(self.sampling_seed) if rng is None else rng
        return candidates[np.sort(rng.choice(len(candidates), self.num_points, replace=False))]

    def resize(self, image: np.ndarray, frame_id: str = "frame") -> np.ndarray:
        """The image at the network's size, uint8 [H, W, 3]; see `data.image_size.fit_image`.

        Raises:
            ValueError: `image_size` is [height, width] of another aspect, or the image is a strip.
        """
        return fit_image(image, self.image_size, self.size_divisor, frame_id)

    def point_labels(
        self, instance: np.ndarray | None, semantic: np.ndarray | None, frame_id: str = "frame"
    ) -> dict[str, np.ndarray]:
        """Labels of points in the form the losses take; see `data.point_labels.labels_of_points`.

        Raises:
            ValueError: A class is out of range, or instances without classes where labels are not class-agnostic.
        """
        return labels_of_points(
            instance, semantic, self.num_semantic_labels, self.stuff_classes, self.class_to_label, frame_id
        )

    @torch.no_grad()
    def post_process_instance_segmentation(
        self,
        outputs: Any,
        inputs: Mapping[str, Any],
        threshold: float = SCORE_THRESHOLD,
        mask_threshold: float | None = None,
        min_points: float | None = None,
        max_instances: int | None = None,
        label_names: Mapping[int, str] | None = None,
        part_gap: float | None = None,
        semantic_names: Mapping[int, str] | None = None,
        name_threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Scored instances of each frame.

        Args:
            outputs: Of the model: `class_queries_logits` [B, Q, C + 1], `masks_queries_logits` [B, Q, N],
                `query_mask` [B, Q].
            inputs: The batch that the model was given, from this processor.
            threshold: Instances need a higher score; 0 for evaluation.
            mask_threshold: None = the processor's.
            min_points: Instances need more points; None = `num_points / 200`.
            max_instances: None = the processor's.
            label_names: Name of each label, for instance `model.config.id2label`; None = the processor's.
            part_gap: None = the processor's.
            semantic_names: Names of the semantic classes, for instance `model.config.semantic_id2label`; adds the
                entries of `postprocessing.describe_class` to the segments, where the network has a semantic head.
            name_threshold: None = the processor's.

        Returns:
            For each frame a dict on the CPU, instances in descending order of score: `segmentation` int32 [H, W] of
            the depth image, -1 = none, else an id (None for a cloud that was not made from a depth image);
            `segments_info`, a list of `id`, `label_id`, `label`, `score`, `num_points`, `num_parts` (how many parts
            apart in space the network's mask had, of which the segment is one; None with `part_gap` 0, where none are
            looked for), and in metres, in the frame of the input's points, `centroid` [x, y, z], `box_3d` [min x, y,
            z, max x, y, z] and `oriented_box_3d` (`center`, `rotation`, `size`), which leave out stray points
            (`boxes`); `point_masks` bool [K, N], `scores` float32 [K], `labels` int64 [K], `queries` int64 [K], their
            rows in the outputs; `num_parts` int64 [K], -1 with `part_gap` 0; `up`, what the network took for up: that
            of the "pose", "estimated", or the "camera"'s. An id is a row of `point_masks`, which has overlapping
            instances too; as elsewhere in transformers, `segments_info` leaves out those that have no pixel in
            `segmentation`.

        Raises:
            ValueError: The model has another number of labels than there are names, or a threshold is no probability.
        """
        check_fraction("threshold", threshold)
        check_fraction("mask_threshold", mask_threshold)
        names = dict(enumerate(self.label_names)) if label_names is None else dict(label_names)
        num_labels = outputs.class_queries_logits.shape[-1] - 1
        if len(names) != num_labels:
            raise ValueError(
                f"label_names has {len(names)} names; the model's class_queries_logits have {num_labels} labels"
            )
        settings: dict[str, Any] = {
            "threshold": threshold,
            "mask_threshold": self.mask_threshold if mask_threshold is None else mask_threshold,
            "min_points": self.min_instance_points if min_points is None else min_points,
            "max_instances": self.max_instances if max_instances is None else max_instances,
            "nms_kernel": self.nms_kernel,
            "nms_sigma": self.nms_sigma,
            "part_gap": self.part_gap if part_gap is None else part_gap,
        }
        check_fraction("name_threshold", name_threshold)
        queries = [real_queries(mask) for mask in outputs.query_mask]
        results = [
            instances_of_frame(
                outputs.class_queries_logits[index][queries[index]],
                outputs.masks_queries_logits[index][queries[index]],
                frame,
                names,
                **settings,
            )
            for index, frame in enumerate(unpad_frames(inputs))
        ]
        if semantic_names is not None and getattr(outputs, "semantic_queries_logits", None) is not None:
            threshold = self.name_threshold if name_threshold is None else name_threshold
            classes = self.post_process_mask_classes(outputs, inputs, [result["point_masks"] for result in results])
            for result, rows in zip(results, classes, strict=True):
                for segment in result["segments_info"]:
                    entries = describe_class(
                        rows[segment["id"]], semantic_names, segment["label"], threshold, label_tells=num_labels > 1
                    )
                    segment.update(entries)
        return results

    @torch.no_grad()
    def post_process_mask_classes(
        self, outputs: Any, inputs: Mapping[str, Any], masks: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """How probable each semantic class is for masks over the points of each frame.

        Args:
            outputs: As of `post_process_semantic_segmentation`.
            inputs: The batch that the model was given, from this processor.
            masks: For each frame bool [K, N].

        Returns:
            For each frame float32 [K, C] on the CPU, as `postprocessing.mask_classes` describes it.

        Raises:
            ValueError: A superpoint has no query.
        """
        return [
            mask_classes(
                torch.as_tensor(masks[index]),
                outputs.semantic_queries_logits[index][outputs.query_mask[index]].cpu(),
                outputs.query_superpoints[index][outputs.query_mask[index]].cpu(),
                frame["superpoint_ids"],
                self.stuff_classes,
            )
            for index, frame in enumerate(unpad_frames(inputs))
        ]

    @torch.no_grad()
    def post_process_semantic_segmentation(self, outputs: Any, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The semantic class of each point and pixel: the best class of its superpoint's query.

        Args:
            outputs: Of the model in eval mode: `semantic_queries_logits` [B, Q, classes + 1], `query_mask` and
                `query_superpoints` [B, Q].
            inputs: The batch that the model was given, from this processor.

        Returns:
            For each frame, on the CPU: `segmentation` int32 [H, W], -1 where there is no superpoint (None for a cloud
            that was not made from a depth image), and `point_labels` int64 [N].

        Raises:
            ValueError: A superpoint has no query.
        """
        return [
            semantics_of_frame(
                outputs.semantic_queries_logits[index][outputs.query_mask[index]],
                outputs.query_superpoints[index][outputs.query_mask[index]],
                frame,
            )
            for index, frame in enumerate(unpad_frames(inputs))
        ]
