import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from frame_factory import BED, CHAIR, POSE, TABLE, make_frame
from PIL import Image
from transformers import AutoProcessor, BatchFeature, pipeline

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.boxes import bounding_box
from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.data.alignment import ALIGNMENT_THRESHOLD, alignment_error
from bifusion_hf.data.frames import CAMERA_TO_POINTS, RGBDFrame
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.layers.geometry import sample_tokens
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.superpoints.numbering import renumber_superpoints


THING_LABELS = [-1, -1, *range(198)]
THING_NAMES = [f"thing {index}" for index in range(198)]


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=3000, num_superpoints=60)


def arguments(frame: RGBDFrame) -> dict:
    return {
        "images": frame.image,
        "depth": frame.depth,
        "intrinsics": frame.intrinsics,
        "poses": frame.camera_to_world,
    }


# --- samples


def test_sample_has_the_fields_of_the_contract(processor):
    sample = processor.prepare_frame(make_frame())
    expected = {
        "points": ("float32", (3000, 3)),
        "point_rgb": ("uint8", (3000, 3)),
        "point_pixels": ("float32", (3000, 2)),
        "point_visible": ("bool", (3000,)),
        "superpoint_ids": ("int64", (3000,)),
        "image": ("uint8", (120, 160, 3)),
        "camera_rotation": ("float32", (3, 3)),
        "instance": ("int64", (3000,)),
        "class_labels": ("int64", (3,)),
        "semantic": ("int64", (3000,)),
        "point_offset": ("float32", (3,)),
        "point_rotation": ("float32", (3, 3)),
        "point_scale": ("float32", ()),
        "pixel_indices": ("int64", (3000,)),
        "superpoint_map": ("int32", (120, 160)),
    }
    assert set(sample) == {*expected, "depth_size", "frame_id", "up_source"}
    assert {name: (str(sample[name].dtype), sample[name].shape) for name in expected} == expected
    assert sample["depth_size"] == (120, 160)
    assert sample["frame_id"] == "synthetic 0"
    assert sample["point_visible"].all()


def test_points_know_their_pixels(processor):
    frame = make_frame()
    sample = processor.prepare_frame(frame)
    rows, columns = np.divmod(sample["pixel_indices"], 160)
    assert (frame.depth[rows, columns] > 0).all()
    assert len(np.unique(sample["pixel_indices"])) == 3000
    np.testing.assert_allclose(
        sample["point_pixels"], np.stack([(columns + 0.5) / 160, (rows + 0.5) / 120], 1), atol=1e-7
    )
    np.testing.assert_array_equal(sample["point_rgb"], frame.image[rows, columns])
    np.testing.assert_array_equal(sample["superpoint_ids"], sample["superpoint_map"][rows, columns])
    np.testing.assert_allclose(sample["points"].mean(axis=0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(sample["points"] + sample["point_offset"], frame.unproject()[rows, columns], atol=1e-5)


def test_pose_and_no_pose():
    processor = BiFusionProcessor(num_points=500)
    posed, bare = (processor.prepare_frame(make_frame(with_pose=flag)) for flag in (True, False))
    np.testing.assert_array_equal(posed["pixel_indices"], bare["pixel_indices"])
    np.testing.assert_allclose(posed["camera_rotation"], POSE[:3, :3], atol=1e-7)
    np.testing.assert_array_equal(bare["camera_rotation"], CAMERA_TO_POINTS)
    # The same cloud in two frames: camera axes agree after each rotation is undone.
    np.testing.assert_allclose(
        posed["points"] @ posed["camera_rotation"], bare["points"] @ bare["camera_rotation"], atol=1e-5
    )


def tilted_frame(degrees=35.0):
    """A floor with a box, from a camera that looks down; no pose."""
    v, u = np.mgrid[:120, :160]
    rays = np.stack([(u - 79.5) / 140, (v - 59.5) / 140, np.ones((120, 160))], axis=-1)
    angle = np.radians(degrees)
    up = np.array([0, -np.cos(angle), -np.sin(angle)])
    height = -(rays @ up)
    depth = np.where(height > 0.2, 1.2 / np.maximum(height, 0.2), 0)
    box = (u > 60) & (u < 100) & (v > 40) & (v < 80)
    depth = np.where(box & (depth > 0), 0.8 / np.maximum(height, 0.2), depth)
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    intrinsics = np.array([[140.0, 0, 79.5], [0, 140.0, 59.5], [0, 0, 1]])
    return RGBDFrame(image, depth, intrinsics, instance=np.where(box, 0, -1)), up


def test_a_frame_without_a_pose_is_turned_upright_and_its_results_come_back():
    frame, up = tilted_frame()
    upright, plain = (BiFusionProcessor(num_points=2000, num_superpoints=30, estimate_up=on) for on in (True, False))
    sample, bare = upright.prepare_frame(frame), plain.prepare_frame(frame)
    assert (sample["up_source"], bare["up_source"]) == ("estimated", "camera")
    np.testing.assert_array_equal(bare["camera_rotation"], CAMERA_TO_POINTS)
    np.testing.assert_array_equal(bare["point_rotation"], np.eye(3))
    np.testing.assert_allclose(sample["camera_rotation"] @ up, [0, 0, 1], atol=0.01)
    # Floor and top of the box are level now.
    inside = sample["instance"] == 0
    assert sample["points"][inside, 2].std() < 0.02 and sample["points"][~inside, 2].std() < 0.02
    assert bare["points"][~inside, 2].std() > 0.2
    np.testing.assert_allclose(bare["points"] @ sample["point_rotation"].T, sample["points"], atol=1e-5)
    for processor, prepared in ((upright, sample), (plain, bare)):
        batch = processor.collate([prepared])
        outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[2.0, 0.0]])], 2000)
        (result,) = processor.post_process_instance_segmentation(outputs, batch, threshold=0.1)
        assert result["up"] == prepared["up_source"]
        positions = frame.unproject().reshape(-1, 3)[prepared["pixel_indices"]][inside]
        (segment,) = result["segments_info"]
        np.testing.assert_allclose(segment["box_3d"], bounding_box(positions), atol=1e-4)


def test_a_close_frame_is_enlarged_and_its_results_stay_in_metres():
    far, _ = tilted_frame()
    # All lengths halved: what the network gets is the same, results are half as large.
    close = dataclasses.replace(far, depth=far.depth / 2)
    middle = float(np.median(far.depth[far.depth > 0]))
    processor = BiFusionProcessor(
        num_points=far.depth.size, num_superpoints=30, estimate_up=False, reference_depth=middle
    )
    samples = [processor.prepare_frame(frame) for frame in (far, close)]
    assert [float(sample["point_scale"]) for sample in samples] == pytest.approx([1, 2])
    np.testing.assert_allclose(samples[1]["points"], samples[0]["points"], atol=1e-5)
    plain = BiFusionProcessor(num_points=far.depth.size, num_superpoints=30, estimate_up=False)
    assert float(plain.prepare_frame(close)["point_scale"]) == 1
    boxes = []
    for sample in samples:
        batch = processor.collate([sample])
        outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[2.0, 0.0]])], far.depth.size)
        (result,) = processor.post_process_instance_segmentation(outputs, batch, threshold=0.1)
        boxes.append(result["segments_info"][0]["box_3d"])
    np.testing.assert_allclose(boxes[1], np.array(boxes[0]) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="reference_depth is -1"):
        BiFusionProcessor(reference_depth=-1)


def test_a_pose_goes_before_any_estimate():
    frame, up = tilted_frame()
    pose = np.eye(4)
    pose[:3, :3] = CAMERA_TO_POINTS
    frame = dataclasses.replace(frame, camera_to_world=pose)
    sample = BiFusionProcessor(num_points=2000, num_superpoints=30).prepare_frame(frame)
    assert sample["up_source"] == "pose"
    np.testing.assert_array_equal(sample["camera_rotation"], CAMERA_TO_POINTS)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("scale", [1, 2])
def test_half_pixel_rule(stride, scale):
    """A float image that encodes (u, v), pooled to tokens, is read back at the points' pixels."""
    frame = make_frame(192, 256, image_scale=scale)
    sample = BiFusionProcessor(num_points=4000).prepare_frame(frame)
    height, width = frame.image.shape[:2]
    u, v = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    tokens = torch.nn.functional.avg_pool2d(torch.stack([u / width, v / height])[None], stride)
    pixels = torch.from_numpy(sample["point_pixels"])[None]
    read = sample_tokens(tokens, pixels)
    border = 0.5 * stride / torch.tensor([width, height])
    inner = ((pixels >= border) & (pixels <= 1 - border)).all(dim=-1)
    assert inner.float().mean() > 0.7
    assert (read - pixels)[inner].abs().max() < 1e-4


def test_sampling_is_deterministic_and_fresh_by_generator(processor):
    frame = make_frame()
    first, again = processor.prepare_frame(frame), processor.prepare_frame(frame)
    np.testing.assert_array_equal(first["pixel_indices"], again["pixel_indices"])
    other = processor.prepare_frame(frame, np.random.default_rng(5))
    assert len(np.intersect1d(first["pixel_indices"], other["pixel_indices"])) < 2000
    seeded = BiFusionProcessor(num_points=3000, sampling_seed=5).prepare_frame(frame)
    np.testing.assert_array_equal(seeded["pixel_indices"], other["pixel_indices"])


def test_all_points_where_there_are_fewer():
    frame = make_frame()
    sample = BiFusionProcessor(num_points=10**6).prepare_frame(frame)
    np.testing.assert_array_equal(sample["pixel_indices"], np.flatnonzero(frame.depth))


def test_image_of_another_size_than_depth():
    native, double = (BiFusionProcessor(num_points=2000).prepare_frame(make_frame(image_scale=s)) for s in (1, 2))
    assert double["image"].shape == (240, 320, 3)
    np.testing.assert_array_equal(native["point_pixels"], double["point_pixels"])
    assert np.abs(native["point_rgb"].astype(int) - double["point_rgb"]).mean() < 2


def test_image_is_resized_without_touching_the_points():
    native, small = (
        BiFusionProcessor(num_points=2000, image_size=size).prepare_frame(make_frame()) for size in (None, [60, 80])
    )
    assert small["image"].shape == (60, 80, 3)
    for name in ("points", "point_pixels", "point_rgb", "superpoint_map"):
        np.testing.assert_array_equal(native[name], small[name])


# --- superpoints


def test_given_superpoints_are_used_as_they_are():
    given = np.zeros((120, 160), dtype=np.int64)
    given[:, 80:] = 900
    given[60:, :] = 7
    frame = make_frame(superpoints=given)
    sample = BiFusionProcessor(num_points=2000).prepare_frame(frame)
    names = np.array([0, 7, 900])
    np.testing.assert_array_equal(names[sample["superpoint_map"]], given)
    np.testing.assert_array_equal(names[sample["superpoint_ids"]], given.flat[sample["pixel_indices"]])


def test_pixels_that_given_superpoints_leave_out_are_segmented():
    given = np.full((120, 160), -1)
    given[:, :80] = 4
    frame = make_frame(superpoints=given)
    sample = BiFusionProcessor(num_points=2000, num_superpoints=40).prepare_frame(frame)
    left = sample["pixel_indices"] % 160 < 80
    assert (sample["superpoint_ids"] >= 0).all()
    assert len(np.unique(sample["superpoint_ids"][left])) == 1
    right = np.unique(sample["superpoint_ids"][~left])
    assert 5 < len(right) < 60
    assert not np.isin(right, sample["superpoint_ids"][left]).any()


def test_superpoints_are_contiguous_over_the_sampled_points():
    sample = BiFusionProcessor(num_points=150, num_superpoints=200).prepare_frame(make_frame())
    count = sample["superpoint_ids"].max() + 1
    assert len(np.unique(sample["superpoint_ids"])) == count < 150
    assert set(np.unique(sample["superpoint_map"])) == {-1, *range(count)}


def test_renumbering_keeps_none_and_drops_unused_ids():
    numbered, ids = renumber_superpoints(np.array([[-1, 5, 2], [9, 5, 30]]), np.array([1, 3]))
    assert numbered.tolist() == [[-1, 0, -1], [1, 0, -1]]
    assert ids.tolist() == [0, 1]
    far = 10**12 * np.array([[0, 5, 2], [9, 5, 30]]) - 1
    numbered, ids = renumber_superpoints(far, np.array([1, 3]))
    assert numbered.tolist() == [[-1, 0, -1], [1, 0, -1]]
    assert ids.tolist() == [0, 1]


@pytest.mark.parametrize("size", [(2, 300), (300, 2), (5, 2000)])
def test_a_strip_is_refused_before_it_grows(size):
    height, width = size
    intrinsics = [[max(size), 0, (width - 1) / 2], [0, max(size), (height - 1) / 2], [0, 0, 1]]
    frame = make_frame(*size, with_pose=False, intrinsics=np.array(intrinsics, dtype=float))
    with pytest.raises(ValueError, match=rf"synthetic 0: image is {size[0]}x{size[1]} .* at most 10 : 1; crop it"):
        BiFusionProcessor(image_size=240).prepare_frame(frame)
    # At its own size it is small.
    assert BiFusionProcessor().prepare_frame(frame)["image"].shape[:2] == size


# --- labels


@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_point_labels_follow_the_reference_rule(reference, case):
    data = np.load(reference / "sp_gt.npz")
    semantic = data[f"{case}_in_semantic"].astype(int)
    semantic = np.where(semantic == 200, -1, semantic)
    instance = data[f"{case}_in_instance"].astype(int)
    aware = BiFusionProcessor(class_to_label=THING_LABELS, label_names=THING_NAMES)
    labels = aware.point_labels(instance, semantic)
    np.testing.assert_array_equal(labels["instance"], data[f"{case}_correct_point_instance"])
    np.testing.assert_array_equal(labels["class_labels"], data[f"{case}_correct_labels"])
    np.testing.assert_array_equal(labels["semantic"], np.where(semantic >= 0, semantic, -100))
    agnostic = BiFusionProcessor().point_labels(instance, semantic)
    np.testing.assert_array_equal(agnostic["instance"], labels["instance"])
    assert agnostic["class_labels"].tolist() == [0] * len(labels["class_labels"])


def test_labels_of_a_chosen_set_of_classes():
    mapping = [-1] * 200
    mapping[CHAIR], mapping[BED] = 1, 0
    processor = BiFusionProcessor(num_points=5000, class_to_label=mapping, label_names=["bed", "chair"])
    frame = make_frame()
    sample = processor.prepare_frame(frame)
    truth = frame.semantic.flat[sample["pixel_indices"]]
    assert sorted(sample["class_labels"].tolist()) == [0, 1]
    for index, label in enumerate(sample["class_labels"]):
        np.testing.assert_array_equal(sample["instance"] == index, truth == {0: BED, 1: CHAIR}[label])
    assert (sample["instance"][truth == TABLE] == -1).all()
    # Semantic supervision still has every class.
    assert set(np.unique(sample["semantic"])) == {-100, 0, 1, CHAIR, TABLE, BED}


def test_instances_without_classes_are_kept_class_agnostically():
    frame = make_frame(semantic=None)
    sample = BiFusionProcessor(num_points=2000).prepare_frame(frame)
    assert "semantic" not in sample
    assert sample["class_labels"].tolist() == [0] * 4
    aware = BiFusionProcessor(class_to_label=THING_LABELS, label_names=THING_NAMES)
    with pytest.raises(ValueError, match="synthetic 0: semantic is missing"):
        aware.prepare_frame(frame)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="synthetic 0: semantic has class 10; expected classes below 10"):
        BiFusionProcessor(num_semantic_labels=10).prepare_frame(make_frame())


# --- __call__


def test_single_frame_call(processor):
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    assert isinstance(batch, BatchFeature)
    assert batch["pixel_values"].shape == (1, 3, 120, 160)
    sample = processor.prepare_frame(frame)
    torch.testing.assert_close(batch["points"][0], torch.from_numpy(sample["points"]), rtol=0, atol=0)
    assert batch["mask_labels"][0].shape == (3, 3000)
    assert batch["frame_ids"] == ["frame 0"]


def test_colours_are_normalised_with_the_stated_statistics(processor):
    frame = make_frame()
    batch = processor(**arguments(frame))
    image = batch["pixel_values"][0].permute(1, 2, 0).numpy() * processor.image_std + processor.image_mean
    np.testing.assert_allclose(image * 255, frame.image, atol=1e-3)
    colors = batch["point_colors"][0].numpy() * processor.color_std + processor.color_mean
    np.testing.assert_allclose(colors * 255, frame.image.reshape(-1, 3)[batch["pixel_indices"][0]], atol=1e-3)


def test_a_frame_is_prepared_alike_alone_and_in_a_batch(processor):
    frames = [make_frame(seed=0), make_frame(seed=1)]
    both = processor(
        images=[frame.image for frame in frames],
        depth=np.stack([frame.depth for frame in frames]),
        intrinsics=frames[0].intrinsics,
        poses=[frame.camera_to_world for frame in frames],
        frame_ids=["a", "b"],
    )
    for index, frame in enumerate(frames):
        alone = processor(**arguments(frame))
        for name in ("points", "point_colors", "point_pixels", "superpoint_ids", "pixel_values", "camera_rotations"):
            torch.testing.assert_close(both[name][index], alone[name][0], rtol=0, atol=0)
    assert both["frame_ids"] == ["a", "b"]


def test_pil_tensor_and_integer_inputs_give_the_same(processor):
    frame = make_frame(depth=np.rint(make_frame().depth * 1000) / 1000)
    plain = processor(**arguments(frame))
    millimetres = np.rint(frame.depth * 1000).astype(np.uint16)
    pictures = processor(
        Image.fromarray(frame.image), Image.fromarray(millimetres), frame.intrinsics, POSE, depth_scale=1000
    )
    tensors = processor(
        torch.from_numpy(frame.image), torch.from_numpy(frame.depth), torch.from_numpy(frame.intrinsics), POSE
    )
    for other in (pictures, tensors):
        torch.testing.assert_close(other["points"], plain["points"], rtol=0, atol=1e-6)
        torch.testing.assert_close(other["pixel_values"], plain["pixel_values"], rtol=0, atol=0)


def test_numpy_tensors(processor):
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, return_tensors="np")
    assert all(isinstance(batch[name], np.ndarray) for name in ("points", "pixel_values", "point_mask"))
    assert isinstance(batch["mask_labels"][0], np.ndarray)
    with pytest.raises(ValueError, match="return_tensors is 'tf'"):
        processor(**arguments(frame), return_tensors="tf")


# --- what is refused


def scaled(pose):
    pose = pose.copy()
    pose[:3, :3] *= 1.1
    return pose


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": np.pad(np.ones((1, 99)), ((0, 119), (0, 61)))}, "desk: depth has 99 pixels with a measurement"),
        ({"depth": np.full((120, 160), np.nan)}, "desk: depth has 0 pixels"),
        ({"intrinsics": np.array([500.0, 500, 80, 60])}, r"desk: intrinsics has shape \(4,\); expected \[3, 3\]"),
        ({"intrinsics": np.diag([500.0, -500.0, 1.0])}, "desk: intrinsics has focal lengths 500, -500"),
        ({"images": np.zeros((120, 120, 3), np.uint8)}, "desk: image is 120x120 while depth is 160x120"),
        (
            {"images": np.zeros((120, 160, 3), np.float32)},
            "desk: image has shape .* and dtype float32; expected uint8",
        ),
        ({"images": np.zeros((3, 120, 160), np.uint8)}, r"desk: image has shape \(3, 120, 160\)"),
        ({"poses": scaled(POSE)}, "desk: camera_to_world is .*expected a rigid pose"),
        ({"poses": np.diag([1.0, 1, -1, 1])}, "desk: camera_to_world is .*expected a rigid pose"),
        ({"superpoints": np.zeros((60, 80), int)}, r"desk: superpoints has shape \(60, 80\).*expected integers \(120"),
        ({"instance_masks": np.zeros((120, 160))}, "desk: instance has shape .* and dtype float64; expected integers"),
        ({"depth": np.full((120, 160), 1000, np.uint16)}, "desk: depth has dtype uint16 and depth_scale is None"),
        ({"depth_scale": 0.0}, "desk: depth_scale is 0.0; expected positive"),
    ],
)
def test_malformed_frames_are_refused_by_name(processor, change, message):
    inputs = {**arguments(make_frame()), "frame_ids": "desk", **change}
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_the_pose_by_either_name(processor):
    values = arguments(make_frame())
    pose = values.pop("poses")
    new, old = processor(**values, camera_to_world=pose), processor(**values, poses=pose)
    assert torch.equal(new["points"], old["points"]) and new["up_sources"] == old["up_sources"] == ["pose"]
    with pytest.raises(ValueError, match="camera_to_world and poses are the same; expected one"):
        processor(**values, camera_to_world=pose, poses=pose)


def test_depth_without_measurement_is_skipped(processor):
    frame = make_frame(holes=False)
    depth = frame.depth.copy()
    for column, value in enumerate((0, -1, np.nan, np.inf, -np.inf)):
        depth[:, column] = value
    batch = BiFusionProcessor(num_points=10**6)(**{**arguments(frame), "depth": depth})
    assert (batch["pixel_indices"] % 160).min() == 5
    assert torch.isfinite(batch["points"]).all()


def test_images_of_different_size_need_a_configured_size():
    frames = [make_frame(), make_frame(image_scale=2)]
    inputs = {
        "images": [frame.image for frame in frames],
        "depth": [frame.depth for frame in frames],
        "intrinsics": frames[0].intrinsics,
    }
    with pytest.raises(ValueError, match="frame 0 120x160, frame 1 240x320; expected one size.*image_size"):
        BiFusionProcessor(num_points=200)(**inputs)
    batch = BiFusionProcessor(num_points=200, image_size=[96, 128])(**inputs)
    assert batch["pixel_values"].shape == (2, 3, 96, 128)


def test_an_image_of_another_aspect_than_configured_is_refused():
    processor = BiFusionProcessor(image_size=[240, 240])
    with pytest.raises(ValueError, match=r"frame 0: image is 120x160.*image_size is \[240, 240\].*one number"):
        processor(**arguments(make_frame()))


@pytest.mark.parametrize(
    ("image_size", "frame_size", "expected"),
    [
        (48, (120, 160), (48, 64)),
        (96, (90, 160), (96, 176)),
        (64, (160, 90), (112, 64)),
        (None, (100, 150), (96, 144)),
        (None, (120, 160), (128, 160)),
    ],
)
def test_a_shorter_side_takes_any_aspect_in_multiples_of_the_patch(image_size, frame_size, expected):
    processor = BiFusionProcessor(num_points=2000, image_size=image_size, size_divisor=16)
    frame = make_frame(*frame_size)
    batch = processor(**arguments(frame))
    assert batch["pixel_values"].shape[2:] == expected
    # The rounding stretches the image by less than a patch, and the points stay on their pixels.
    assert alignment_error(processor.prepare_frame(frame)) < ALIGNMENT_THRESHOLD


def test_columns_of_another_length_are_refused(processor):
    frame = make_frame()
    with pytest.raises(ValueError, match="camera_to_world has 1 entries; expected one for each of 2 images"):
        processor([frame.image] * 2, [frame.depth] * 2, frame.intrinsics, [POSE])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"image_size": [240]}, r"image_size is \[240\]"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; expected three"),
        ({"color_std": [1, 1, 0]}, "color_std is .*expected positive"),
        ({"stuff_classes": [0, 200]}, r"stuff_classes is \[0, 200\]; expected semantic classes"),
        ({"nms_kernel": "soft"}, "nms_kernel is 'soft'"),
        ({"class_to_label": [0, 1]}, "class_to_label is .*expected 200 entries"),
        ({"class_to_label": [3] * 200}, "class_to_label is .*labels below 1"),
    ],
)
def test_malformed_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BiFusionProcessor(**values)


# --- configuration


def test_save_and_load_restore_every_value(tmp_path):
    processor = BiFusionProcessor(
        num_points=1234,
        image_size=(240, 320),
        image_mean=(0.1, 0.2, 0.3),
        color_std=(0.4, 0.5, 1 / 3),
        stuff_classes=(0, 1, 5),
        class_to_label=THING_LABELS,
        label_names=THING_NAMES,
        num_superpoints=99,
        sampling_seed=7,
        mask_threshold=0.45,
        max_instances=30,
        nms_kernel="gaussian",
        nms_sigma=1.5,
    )
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    loaded = BiFusionProcessor.from_pretrained(tmp_path)
    names = set(BiFusionProcessor.__init__.__code__.co_varnames[1:17])
    assert names <= set(saved)
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(processor, name) for name in names}
    frame = make_frame()
    first, second = processor.prepare_frame(frame), loaded.prepare_frame(frame)
    for name in ("points", "image", "superpoint_ids", "class_labels"):
        np.testing.assert_array_equal(first[name], second[name])
    changed = BiFusionProcessor.from_pretrained(tmp_path, num_points=55)
    assert changed.num_points == 55
    assert changed.max_instances == 30


def test_from_config():
    agnostic = BiFusionProcessor.from_preset("tiny", image_size=[240, 320])
    assert (agnostic.num_points, agnostic.image_size, agnostic.class_to_label) == (8000, [240, 320], None)
    assert agnostic.label_names == ["object"]
    assert agnostic.min_instance_points == 40
    names = dict(enumerate(THING_NAMES))
    aware = BiFusionProcessor.from_config(BiFusionConfig(id2label=names))
    assert aware.class_to_label == THING_LABELS
    assert aware.label_names == THING_NAMES
    with pytest.raises(ValueError, match="the model has 3 labels and 198 classes.*class_to_label"):
        BiFusionProcessor.from_config(BiFusionConfig(num_labels=3))


@pytest.mark.parametrize("config", [None, "config.json"])
def test_a_folder_without_a_processor_is_refused_by_name(config, tmp_path):
    """As transformers' Trainer leaves it; there a default processor would take its place."""
    BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny")).save_pretrained(tmp_path)
    if config is None:
        (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=rf"{tmp_path} has no processor_config.json.*num_points"):
        BiFusionProcessor.from_pretrained(tmp_path)
    if config is not None:
        for load in (
            load_pretrained,
            AutoProcessor.from_pretrained,
            lambda folder: pipeline("rgbd-instance-segmentation", model=str(folder)),
        ):
            with pytest.raises(OSError, match="has no processor_config.json"):
                load(tmp_path)


# --- half precision


@pytest.mark.parametrize(
    "how", [("cpu", torch.bfloat16), (torch.float16,), {"dtype": torch.bfloat16}, {"device": "cpu"}]
)
def test_a_cast_leaves_positions_where_they_are(how, processor):
    inputs = processor(**arguments(make_frame()), instance_masks=make_frame().instance)
    names = list(inputs)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    moved = inputs.to(**how) if isinstance(how, dict) else inputs.to(*how)
    assert moved is inputs and list(moved) == names
    dtype = how.get("dtype", torch.float32) if isinstance(how, dict) else how[-1]
    for name, value in before.items():
        if name in ("point_colors", "pixel_values"):
            assert moved[name].dtype == dtype
            assert torch.equal(moved[name], value.to(dtype))
        else:
            assert torch.equal(moved[name], value) and moved[name].dtype == value.dtype, name
    assert moved["points"].dtype == moved["point_pixels"].dtype == moved["camera_rotations"].dtype == torch.float32


def test_a_move_moves_everything(processor):
    inputs = processor(**arguments(make_frame()), instance_masks=make_frame().instance).to("meta", torch.bfloat16)
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
    tensors += [*inputs["mask_labels"], *inputs["class_labels"], *inputs["superpoint_maps"]]
    assert {value.device.type for value in tensors} == {"meta"}


# --- post-processing


def outputs_from_masks(masks: list[torch.Tensor], classes: list[torch.Tensor], num_points: int) -> SimpleNamespace:
    """What a model would give that is sure of these masks; padded to a common number of queries."""
    queries = max(len(rows) for rows in masks)
    result = SimpleNamespace(
        class_queries_logits=torch.full((len(masks), queries, classes[0].shape[1]), 7.0),
        masks_queries_logits=torch.full((len(masks), queries, num_points), 30.0),
        query_mask=torch.zeros(len(masks), queries, dtype=torch.bool),
    )
    for index, rows in enumerate(masks):
        result.class_queries_logits[index, : len(rows)] = classes[index]
        result.masks_queries_logits[index, : len(rows), : rows.shape[1]] = torch.where(rows, 12.0, -12.0)
        result.query_mask[index, : len(rows)] = True
    return result


def test_true_masks_come_back_as_segments():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=80)
    frames = [make_frame(seed=0), make_frame(seed=1, with_pose=False)]
    # Another number of points, so that the batch is padded.
    frames[1].depth[:, :130] = 0
    batch = processor(
        images=[frame.image for frame in frames],
        depth=[frame.depth for frame in frames],
        intrinsics=frames[0].intrinsics,
        poses=[frame.camera_to_world for frame in frames],
        instance_masks=[frame.instance for frame in frames],
        semantic_masks=[frame.semantic for frame in frames],
    )
    counts = batch["point_mask"].sum(dim=1).tolist()
    assert counts[0] == 4000 > counts[1]
    masks = [rows[:, :count] for rows, count in zip(batch["mask_labels"], counts, strict=True)]
    classes = [torch.tensor([[2.0 + index, 0.0] for index in range(len(rows))]) for rows in masks]
    outputs = outputs_from_masks(masks, classes, 4000)
    results = processor.post_process_instance_segmentation(outputs, batch, threshold=0.1)
    for index, (frame, result) in enumerate(zip(frames, results, strict=True)):
        expected = masks[index].flip(0)
        torch.testing.assert_close(result["point_masks"], expected)
        assert (result["scores"].diff() <= 0).all()
        assert result["labels"].tolist() == [0] * len(expected)
        assert result["segmentation"].shape == (120, 160)
        positions = frame.unproject().reshape(-1, 3)[batch["pixel_indices"][index][: counts[index]]]
        for segment, mask in zip(result["segments_info"], expected, strict=True):
            assert (segment["label_id"], segment["label"]) == (0, "object")
            assert segment["num_points"] == int(mask.sum())
            inside = positions[mask.numpy()]
            np.testing.assert_allclose(segment["box_3d"], bounding_box(inside), atol=1e-4)
            pixels = result["segmentation"].numpy() == segment["id"]
            truth = frame.instance == frame.instance.flat[batch["pixel_indices"][index][: counts[index]][mask]][0]
            overlap = (pixels & truth & (frame.depth > 0)).sum() / ((pixels | truth) & (frame.depth > 0)).sum()
            assert overlap > 0.9


def test_segments_info_lists_what_the_segmentation_shows():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=40)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    masks = batch["mask_labels"][0]
    # The second instance is a part of the first, of which the network is surer.
    covered = torch.stack([masks[0] | masks[1], masks[1], masks[2]])
    outputs = outputs_from_masks([covered], [torch.tensor([[9.0, 0], [2.0, 0], [6.0, 0]])], 4000)
    # Both instances of the first mask stay one: what is asked here is what a covered instance comes to.
    options = {"threshold": 0.1, "min_points": 0, "part_gap": 0.0}
    result = processor.post_process_instance_segmentation(outputs, batch, **options)[0]
    assert len(result["scores"]) == 3
    hidden = [index for index, mask in enumerate(result["point_masks"]) if torch.equal(mask, masks[1])]
    shown = result["segmentation"].unique().tolist()
    assert len(hidden) == 1 and [segment["id"] for segment in result["segments_info"]] == shown[1:]
    assert not set(hidden) & set(shown) and len(shown) == 3
    for segment in result["segments_info"]:
        assert segment["score"] == pytest.approx(float(result["scores"][segment["id"]]))
        assert segment["num_points"] == int(result["point_masks"][segment["id"]].sum())


def test_class_aware_labels_and_thresholds():
    processor = BiFusionProcessor(num_points=4000, num_superpoints=40)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    masks = batch["mask_labels"][0]
    classes = torch.tensor([[0.0, 5, 0, 0], [4.0, 0, 0, 0], [0, 0, 0.5, 0]])
    outputs = outputs_from_masks([masks], [classes], 4000)
    names = {0: "chair", 1: "table", 2: "bed"}
    result = processor.post_process_instance_segmentation(outputs, batch, label_names=names)[0]
    assert [segment["label"] for segment in result["segments_info"]] == ["table", "chair"]
    assert result["labels"].tolist() == [1, 0]
    many = processor.post_process_instance_segmentation(outputs, batch, threshold=0.0, label_names=names)[0]
    assert len(many["scores"]) > 3
    few = processor.post_process_instance_segmentation(
        outputs, batch, threshold=0.0, label_names=names, max_instances=1, min_points=0
    )[0]
    assert len(few["scores"]) == 1
    large = processor.post_process_instance_segmentation(outputs, batch, min_points=4000, label_names=names)[0]
    assert large["segments_info"] == []
    assert (large["segmentation"] == -1).all()
    with pytest.raises(ValueError, match="label_names has 1 names.*3 labels"):
        processor.post_process_instance_segmentation(outputs, batch)


def test_semantic_segmentation_follows_the_superpoints():
    processor = BiFusionProcessor(num_points=3000, num_superpoints=50)
    frames = [make_frame(seed=0), make_frame(seed=1)]
    batch = processor([f.image for f in frames], [f.depth for f in frames], frames[0].intrinsics)
    counts = (batch["superpoint_ids"].max(dim=1).values + 1).tolist()
    generator = torch.Generator().manual_seed(0)
    order = [torch.randperm(count, generator=generator) for count in counts]
    outputs = SimpleNamespace(
        semantic_queries_logits=torch.randn(2, max(counts) + 3, 201, generator=generator),
        query_superpoints=torch.nn.functional.pad(
            torch.nn.utils.rnn.pad_sequence(order, batch_first=True, padding_value=-1), (0, 3), value=-1
        ),
    )
    outputs.semantic_queries_logits[..., 200] = 50.0
    outputs.query_mask = outputs.query_superpoints >= 0
    for index, result in enumerate(processor.post_process_semantic_segmentation(outputs, batch)):
        query_of = torch.argsort(order[index])
        classes = outputs.semantic_queries_logits[index, :, :200].argmax(dim=1)[query_of]
        torch.testing.assert_close(result["point_labels"], classes[batch["superpoint_ids"][index]])
        of_pixels = batch["superpoint_maps"][index]
        expected = torch.where(of_pixels >= 0, classes[of_pixels.clamp(min=0).long()], -1)
        torch.testing.assert_close(result["segmentation"].long(), expected)


def test_numpy_batches_can_be_post_processed():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    arrays = processor(
        **arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic, return_tensors="np"
    )
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    first = processor.post_process_instance_segmentation(outputs, batch)[0]
    second = processor.post_process_instance_segmentation(outputs, arrays)[0]
    assert first["segments_info"] == second["segments_info"]
    torch.testing.assert_close(first["segmentation"], second["segmentation"])


@pytest.mark.gpu
def test_results_of_a_cuda_model_come_back_to_the_cpu():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    expected = processor.post_process_instance_segmentation(outputs, batch)[0]
    moved = SimpleNamespace(**{name: value.cuda() for name, value in vars(outputs).items()})
    found = processor.post_process_instance_segmentation(moved, batch.to("cuda"))[0]
    for name in ("segmentation", "point_masks", "scores", "labels"):
        torch.testing.assert_close(found[name], expected[name])


def test_post_processing_keeps_no_gradient():
    processor = BiFusionProcessor(num_points=2000, num_superpoints=30)
    frame = make_frame()
    batch = processor(**arguments(frame), instance_masks=frame.instance, semantic_masks=frame.semantic)
    outputs = outputs_from_masks([batch["mask_labels"][0]], [torch.tensor([[3.0, 0]] * 3)], 2000)
    outputs.class_queries_logits.requires_grad_()
    assert not processor.post_process_instance_segmentation(outputs, batch)[0]["scores"].requires_grad


# --- real frames


def test_real_kinect_frames(real_frames):
    processor = BiFusionProcessor(image_size=[240, 320])
    intrinsics = np.array([[520.9, 0, 325.1], [0, 521.0, 249.7], [0, 0, 1]])
    batch = processor(
        [Image.open(real_frames / f"desk_{index}_color.png") for index in (1, 2)],
        [Image.open(real_frames / f"desk_{index}_depth.png") for index in (1, 2)],
        intrinsics,
        depth_scale=5000,
    )
    assert batch["point_mask"].sum(dim=1).tolist() == [20000, 20000]
    assert (batch["superpoint_ids"].max(dim=1).values > 100).all()
    # z is up: most of what a camera over a desk sees lies below it, and in front.
    assert (batch["point_offsets"][:, 1] > 0.5).all()
