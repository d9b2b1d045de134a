import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from PIL import Image
from processing_examples import arguments
from transformers import BatchFeature

from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=3000, num_superpoints=60)


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


def test_intrinsics_of_a_batch_may_be_of_several_kinds(processor):
    frame = make_frame()
    fx, fy, cx, cy = (float(frame.intrinsics[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2)))
    kinds = [{"fx": fx, "fy": fy, "cx": cx, "cy": cy}, frame.intrinsics.tolist()]
    batch = processor([frame.image] * 2, [frame.depth] * 2, kinds)
    torch.testing.assert_close(batch["points"][0], batch["points"][1], rtol=0, atol=1e-5)


def test_columns_of_another_length_are_refused(processor):
    frame = make_frame()
    with pytest.raises(ValueError, match="camera_to_world has 1 entries; expected one for each of 2 images"):
        processor([frame.image] * 2, [frame.depth] * 2, frame.intrinsics, [POSE])


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
