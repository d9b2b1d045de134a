import dataclasses

import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from processing_examples import outputs_from_masks

from bifusion_hf.boxes import bounding_box
from bifusion_hf.data.frames import CAMERA_TO_POINTS, RGBDFrame
from bifusion_hf.layers.geometry import sample_tokens
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.superpoints.numbering import renumber_superpoints
from bifusion_hf.superpoints.segmentation import segment_superpoints


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=3000, num_superpoints=60)


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
    assert (np.diff(sample["pixel_indices"]) > 0).all() and len(rows) == 3000
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
    choices = ({}, {"estimate_up": False})
    upright, plain = (BiFusionProcessor(num_points=2000, num_superpoints=30, **choice) for choice in choices)
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


@pytest.mark.parametrize("is_part", [False, True])
def test_what_is_segmented_is_the_rest_of_the_frame_with_its_share_of_the_superpoints(is_part):
    """Superpoint 0 is one that was given, and a pixel without depth is none whatever was given there."""
    frame = make_frame(90, 130)
    given = np.full((90, 130), -1)
    given[:, :50], given[60:, :] = 0, 3
    # Exactly a share of the measured pixels, of which there are fewer than pixels.
    share = (given < 0)[frame.depth > 0].mean() if is_part else 1
    rest = frame.depth if not is_part else np.where(given < 0, frame.depth, 0)
    expected = segment_superpoints(
        frame.image, rest, frame.intrinsics, num_segments=round(25 * share), color_blur=0.01
    )
    expected = np.where(given >= 0, given - 9, expected) if is_part else expected
    frame = dataclasses.replace(frame, superpoints=given if is_part else None)
    processor = BiFusionProcessor(num_points=10**6, num_superpoints=25, superpoint_color_blur=0.01)
    sample = processor.prepare_frame(frame)
    # The same parts, numbered in another way.
    wanted, found = expected[frame.depth > 0], sample["superpoint_map"][frame.depth > 0]
    pairs = np.unique(np.stack([wanted, found]), axis=1)
    assert pairs.shape[1] == len(np.unique(wanted)) == len(np.unique(found)) > 5
    np.testing.assert_array_equal(found, sample["superpoint_ids"])


def test_the_last_pixel_that_superpoints_leave_out_is_one_of_its_own():
    """However small its share of the superpoints is."""
    given = np.zeros((120, 160), int)
    given[20, 30] = -1
    sample = BiFusionProcessor(num_points=10**6, num_superpoints=2).prepare_frame(
        make_frame(holes=False, superpoints=given)
    )
    np.testing.assert_array_equal(sample["superpoint_map"], np.where(given < 0, 1, 0))


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
