import numpy as np
import pytest
import torch
from frame_factory import make_frame

from bifusion_hf.data.collator import BiFusionCollator, FrameFeatures, collate_samples, normalize, to_numpy
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module")
def processor():
    return BiFusionProcessor(num_points=1500, num_superpoints=40)


@pytest.fixture(scope="module")
def samples(processor):
    frames = [make_frame(seed=0), make_frame(seed=1, with_pose=False), make_frame(seed=2)]
    frames[1].depth[:, 40:] = 0
    frames[2].depth[:, 20:] = 0
    return [
        BiFusionProcessor(num_points=n, num_superpoints=40).prepare_frame(f)
        for n, f in zip((1500, 900, 700), frames, strict=True)
    ]


def test_batch_has_the_shapes_of_the_contract(processor, samples):
    batch = BiFusionCollator(processor)(samples)
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if torch.is_tensor(value)}
    assert shapes == {
        "points": (torch.float32, (3, 1500, 3)),
        "point_colors": (torch.float32, (3, 1500, 3)),
        "point_mask": (torch.bool, (3, 1500)),
        "superpoint_ids": (torch.int64, (3, 1500)),
        "pixel_values": (torch.float32, (3, 3, 120, 160)),
        "point_pixels": (torch.float32, (3, 1500, 2)),
        "point_visible": (torch.bool, (3, 1500)),
        "camera_rotations": (torch.float32, (3, 3, 3)),
        "semantic_labels": (torch.int64, (3, 1500)),
        "point_offsets": (torch.float32, (3, 3)),
        "point_rotations": (torch.float32, (3, 3, 3)),
        "point_scales": (torch.float32, (3,)),
        "pixel_indices": (torch.int64, (3, 1500)),
    }
    assert [(masks.dtype, masks.shape[1]) for masks in batch["mask_labels"]] == [(torch.bool, 1500)] * 3
    assert [labels.dtype for labels in batch["class_labels"]] == [torch.int64] * 3
    assert [tuple(value.shape) for value in batch["superpoint_maps"]] == [(120, 160)] * 3
    assert batch["frame_ids"] == ["synthetic 0", "synthetic 1", "synthetic 2"]


def test_values_come_back_and_padding_is_marked(processor, samples):
    batch = processor.collate(samples)
    for index, sample in enumerate(samples):
        count = len(sample["points"])
        assert batch["point_mask"][index].tolist() == [True] * count + [False] * (1500 - count)
        pairs = {
            "points": "points",
            "point_pixels": "point_pixels",
            "superpoint_ids": "superpoint_ids",
            "pixel_indices": "pixel_indices",
            "semantic_labels": "semantic",
        }
        for name, source in pairs.items():
            np.testing.assert_array_equal(batch[name][index, :count], sample[source])
        assert not batch["point_visible"][index, count:].any()
        assert not batch["points"][index, count:].any() and not batch["point_colors"][index, count:].any()
        assert (batch["point_pixels"][index, count:] == 0.5).all()
        colors = (sample["point_rgb"] / 255 - processor.color_mean) / processor.color_std
        np.testing.assert_allclose(batch["point_colors"][index, :count], colors, atol=1e-6)
        image = (sample["image"] / 255 - processor.image_mean) / processor.image_std
        np.testing.assert_allclose(batch["pixel_values"][index], image.transpose(2, 0, 1), atol=1e-6)
        for name in ("point_offset", "point_rotation", "point_scale", "camera_rotation"):
            np.testing.assert_array_equal(batch[f"{name}s"][index], sample[name])
        assert batch["class_labels"][index].tolist() == sample["class_labels"].tolist()
        assert batch["up_sources"][index] == sample["up_source"]
        np.testing.assert_array_equal(batch["superpoint_maps"][index], sample["superpoint_map"])
        assert (batch["superpoint_ids"][index, count:] == -1).all()
        assert (batch["pixel_indices"][index, count:] == -1).all()
        assert (batch["semantic_labels"][index, count:] == -100).all()
        masks = batch["mask_labels"][index]
        assert masks.shape[0] == len(sample["class_labels"]) == sample["instance"].max() + 1
        for row in range(len(masks)):
            np.testing.assert_array_equal(masks[row, :count], sample["instance"] == row)
        assert not masks[:, count:].any()


def test_colours_are_normalised_as_fractions_of_255():
    values = normalize(np.array([[0, 51, 255]], np.uint8), [0.5, 0.1, 0], [0.25, 0.5, 2])
    torch.testing.assert_close(values, torch.tensor([[-2.0, 0.2, 0.5]]))


def test_a_cast_is_of_colours_and_image_alone(processor, samples):
    batch = processor.collate(samples)
    for cast in (FrameFeatures(batch).to(torch.float16), FrameFeatures(batch).to("cpu", dtype=torch.float16)):
        assert list(cast) == list(batch)
        different = [
            name for name, value in cast.items() if torch.is_tensor(value) and value.dtype != batch[name].dtype
        ]
        assert different == ["point_colors", "pixel_values"]
        torch.testing.assert_close(cast["pixel_values"], batch["pixel_values"].half())
    moved = FrameFeatures(batch).to("meta")
    assert {value.device.type for value in moved.values() if torch.is_tensor(value)} == {"meta"}
    # A cloud has no image.
    bare = FrameFeatures({name: batch[name] for name in ("points", "point_colors")}).to(torch.float16)
    assert {name: value.dtype for name, value in bare.items()} == {
        "points": torch.float32,
        "point_colors": torch.float16,
    }


def test_a_batch_in_arrays():
    found = to_numpy({"a": torch.ones(2), "b": [torch.zeros(1), None, [torch.ones(1)]], "c": "name", "d": {"e": 3}})
    assert type(found["a"]) is type(found["b"][0]) is type(found["b"][2][0]) is np.ndarray
    assert found["a"].tolist() == [1, 1] and found["b"][1:] == [None, [np.ones(1)]]
    assert found["c"] == "name" and found["d"] == {"e": 3}


def test_a_frame_without_instances_has_empty_masks(processor, samples):
    empty = {**samples[0], "instance": np.full(1500, -1), "class_labels": np.zeros(0, np.int64)}
    batch = processor.collate([samples[0], empty])
    assert batch["mask_labels"][1].shape == (0, 1500)
    assert batch["class_labels"][1].shape == (0,)


def test_unlabelled_frames_have_no_label_keys(processor, samples):
    bare = [{k: v for k, v in s.items() if k not in ("instance", "class_labels", "semantic")} for s in samples]
    assert not {"mask_labels", "class_labels", "semantic_labels"} & set(processor.collate(bare))
    with pytest.raises(ValueError, match="synthetic 1: instance is missing; expected in all samples"):
        processor.collate([samples[0], bare[1]])


def test_clouds_without_an_image_have_no_image_keys(processor, samples):
    bare = [{name: value for name, value in sample.items() if name != "image"} for sample in samples]
    batch = processor.collate(bare)
    assert not {"pixel_values", "point_pixels", "point_visible", "camera_rotations"} & set(batch)
    with pytest.raises(ValueError, match="synthetic 0: image is missing"):
        processor.collate([bare[0], samples[1]])


def test_extras_of_the_data_set_are_carried(processor, samples):
    extended = [
        {**sample, "query_seed": 2**61 + index, "alignment_error": 0.01} for index, sample in enumerate(samples)
    ]
    batch = processor.collate(extended)
    assert batch["query_seeds"].tolist() == [2**61, 2**61 + 1, 2**61 + 2]
    torch.testing.assert_close(batch["alignment_errors"], torch.full((3,), 0.01))
    # Numbers of other kinds are of the same type in the batch.
    for seed, error in ((np.int32(7), np.float64(0.01)), (np.uint8(7), 0)):
        batch = processor.collate([{**sample, "query_seed": seed, "alignment_error": error} for sample in samples])
        torch.testing.assert_close(batch["query_seeds"], torch.full((3,), 7))
        torch.testing.assert_close(batch["alignment_errors"], torch.full((3,), float(error)))


def test_images_of_different_size_are_refused(processor, samples):
    other = {**samples[1], "image": samples[1]["image"][:60, :80]}
    with pytest.raises(ValueError, match="synthetic 0 120x160, synthetic 1 60x80; expected one size.*image_size"):
        processor.collate([samples[0], other])
    # The pipeline calls every frame "frame".
    with pytest.raises(ValueError, match="frame 120x160, frame 60x80; expected one size"):
        processor.collate([{**sample, "frame_id": "frame"} for sample in (samples[0], other)])


def test_skipped_frames_are_left_out(processor, samples):
    batch = BiFusionCollator(processor)([None, samples[1], None])
    assert batch["frame_ids"] == ["synthetic 1"]
    assert BiFusionCollator(processor)([None, None]) is None
    with pytest.raises(ValueError, match="at least one sample"):
        collate_samples([], image_mean=[0] * 3, image_std=[1] * 3, color_mean=[0] * 3, color_std=[1] * 3)
