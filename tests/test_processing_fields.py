"""Every argument of the processor changes what it names: the network's inputs, or what becomes of its outputs."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from bifusion_hf import BiFusionProcessor


# Argument -> another value, and where it is seen. Frames have 60 x 80 pixels and 4,800 points less the holes.
CHANGES = {
    "num_points": (500, "points"),
    "image_size": (30, "pixel_values"),
    "size_divisor": (32, "pixel_values"),
    "image_mean": ([0.1, 0.2, 0.3], "pixel_values"),
    "image_std": ([0.5, 0.6, 0.7], "pixel_values"),
    "color_mean": ([0.1, 0.2, 0.3], "point_colors"),
    "color_std": ([0.5, 0.6, 0.7], "point_colors"),
    "stuff_classes": ([0, 1, 2], "mask_labels"),
    "class_to_label": ([0, 1] * 6, "class_labels"),
    "label_names": (["other"], "names"),
    "num_semantic_labels": (3, "refused"),
    "num_superpoints": (20, "superpoint_ids"),
    "superpoint_color_blur": (0.5, "superpoint_ids"),
    "estimate_up": (False, "up_sources"),
    "reference_depth": (9.0, "points"),
    "sampling_seed": (1, "points"),
    "mask_threshold": (0.7, "masks"),
    "max_instances": (2, "scores"),
    "nms_kernel": ("linear", "scores"),
    "nms_sigma": (0.2, "scores"),
    "part_gap": (0.0, "masks"),
    "name_threshold": (0.1, "semantic names"),
}
# Where the change shows only beside another.
BESIDE = {"class_to_label": {"label_names": ["even", "odd"]}}
BASE = {"num_points": 600, "num_superpoints": 60, "num_semantic_labels": 12, "nms_kernel": "gaussian"}
INSTANCES = ("names", "semantic names", "masks", "scores")


@pytest.fixture(scope="module")
def frame():
    return make_frame(60, 80)


@pytest.fixture(scope="module")
def floor():
    """A frame without a pose that is all floor, from a camera that looks down by 45 degrees."""
    below = 0.7 * (1 + (np.arange(60)[:, None] - 29.5) / 72)
    depth = np.broadcast_to(1.2 / below, (60, 80))
    return make_frame(60, 80, depth=depth, with_pose=False)


def inputs_of(processor, frame, superpoints):
    return processor(
        images=frame.image,
        depth=frame.depth,
        intrinsics=frame.intrinsics,
        poses=frame.camera_to_world,
        superpoints=superpoints,
        instance_masks=frame.instance,
        semantic_masks=frame.semantic,
    )


def instances_of(processor, inputs, semantic=False):
    """What becomes of six queries that overlap; each mask falls off from a point of its own."""
    points = inputs["points"][0]
    centres = points[:: len(points) // 6][:6]
    outputs = SimpleNamespace(
        class_queries_logits=torch.tensor([[[index / 3.0, 0.0] for index in range(6)]]),
        masks_queries_logits=(6 - 3 * torch.cdist(centres, points))[None],
        query_mask=torch.ones(1, 6, dtype=torch.bool),
    )
    if not semantic:
        return processor.post_process_instance_segmentation(outputs, inputs, threshold=0.0)[0]
    # Every superpoint has a query, which is no surer of the class 3 than 0.3.
    outputs.semantic_queries_logits = torch.zeros(1, 6, 13)
    outputs.semantic_queries_logits[..., 3] = np.log(0.3 / 0.7 * 11)
    outputs.query_superpoints = torch.arange(6)[None] % int(inputs["superpoint_ids"].max() + 1)
    names = {index: f"class {index}" for index in range(12)}
    return processor.post_process_instance_segmentation(outputs, inputs, threshold=0.0, semantic_names=names)[0]


def observe(frame, seen_in, **arguments):
    processor = BiFusionProcessor(**{**BASE, **arguments})
    if seen_in == "refused":
        with pytest.raises(ValueError, match="semantic has class 10") as refused:
            inputs_of(processor, frame, None)
        return str(refused.value)
    # Superpoints are given where nothing is to be seen in them: making them takes the longest.
    superpoints = None if seen_in == "superpoint_ids" else (frame.depth > 2).astype(int)
    inputs = inputs_of(processor, frame, superpoints)
    if seen_in not in INSTANCES:
        return inputs[seen_in][0]
    found = instances_of(processor, inputs, seen_in == "semantic names")
    if seen_in == "semantic names":
        return [segment["name"] for segment in found["segments_info"]]
    if seen_in == "names":
        return [segment["label"] for segment in found["segments_info"]]
    return found["point_masks"] if seen_in == "masks" else found["scores"]


def same(first, second):
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    return first == second


def test_images_have_the_statistics_of_clip():
    processor = BiFusionProcessor()
    assert tuple(processor.image_mean) == tuple(OPENAI_CLIP_MEAN)
    assert tuple(processor.image_std) == tuple(OPENAI_CLIP_STD)


def test_every_argument_is_looked_at():
    assert set(inspect.signature(BiFusionProcessor.__init__).parameters) - {"self"} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_argument_changes_what_it_names(frame, floor, name):
    value, seen_in = CHANGES[name]
    frame = floor if name == "estimate_up" else frame
    changed = observe(frame, seen_in, **BESIDE.get(name, {}), **{name: value})
    if seen_in != "refused":
        assert not same(changed, observe(frame, seen_in))


@pytest.mark.parametrize("name", CHANGES)
def test_argument_is_saved_and_read(tmp_path, name):
    arguments = {**BASE, **BESIDE.get(name, {}), name: CHANGES[name][0]}
    BiFusionProcessor(**arguments).save_pretrained(tmp_path)
    loaded = BiFusionProcessor.from_pretrained(tmp_path)
    assert getattr(loaded, name) == arguments[name]
