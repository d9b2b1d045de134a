import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from bifusion_hf.superpoints.masks import (
    load_mask_generator,
    load_masks,
    superpoints_from_mask_generator,
    superpoints_from_masks,
)
from bifusion_hf.superpoints.segmentation import segment_superpoints


@pytest.fixture
def frame():
    depth = np.full((60, 80), 2.0, np.float32)
    depth[:, :3] = 0
    return np.full((60, 80, 3), 90, np.uint8), depth, np.array([[80.0, 0, 39.5], [0, 80.0, 29.5], [0, 0, 1]])


def rectangle(rows, columns, shape=(60, 80)):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


TABLE = rectangle(slice(20, 50), slice(0, 60))
CUP = rectangle(slice(30, 40), slice(10, 20))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_smaller_masks_overwrite_larger(frame, order):
    image, depth, intrinsics = frame
    found = superpoints_from_masks(np.stack([TABLE, CUP])[order], image, depth, intrinsics)
    assert found.dtype == np.int32
    assert ((found >= 0) == (depth > 0)).all()
    table, cup = found[22, 10], found[35, 15]
    np.testing.assert_array_equal(found == cup, CUP)
    np.testing.assert_array_equal(found == table, TABLE & ~CUP & (depth > 0))
    assert set(np.unique(found)) == set(range(-1, found.max() + 1))


def test_of_masks_of_one_size_later_ones_lie_on_top(frame):
    image, depth, intrinsics = frame
    # Forty windows, each a column further to the right: of each but the last one column is seen, beside it those of
    # a larger mask before each, which all of them lie on.
    windows = [rectangle(slice(None), slice(3 + first, 40 + first)) for first in range(40)]
    larger = rectangle(slice(None), slice(3, 80))
    found = superpoints_from_masks(np.stack([m for w in windows for m in (larger, w)]), image, depth, intrinsics)
    np.testing.assert_array_equal(found[:, 3:], np.minimum(np.arange(77), [39] * 76 + [40])[None].repeat(60, 0))


def test_uncovered_pixels_are_split_by_geometry(frame):
    image, depth, intrinsics = frame
    depth[:, 65:] = 4.0
    # A colour gradient of a few levels, next to metres: 6-D clustering of raw values would follow it.
    image[...] = np.linspace(60, 120, 60, dtype=np.uint8)[:, None, None]
    found = superpoints_from_masks(TABLE[None], image, depth, intrinsics, num_segments=20)
    left, right = found[:, 62:65], found[:, 65:]
    assert not set(np.unique(left)) & set(np.unique(right))
    assert 2 <= found.max() < 20


def test_lists_are_taken_as_arrays_are(frame):
    image, depth, intrinsics = frame
    expected = superpoints_from_masks(np.stack([TABLE, CUP]), image, depth, intrinsics)
    found = superpoints_from_masks([TABLE, CUP], image, depth.tolist(), intrinsics)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_segments", [1, 30])
def test_uncovered_pixels_get_their_share_of_the_segments(frame, num_segments):
    """Of what is measured, which is less than the image; one at least, and none of a mask's."""
    image, depth, intrinsics = frame
    image[...] = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).repeat(10, 0).repeat(10, 1)
    depth[50:, :40] = 0
    masks = np.stack([TABLE, CUP, rectangle(slice(0, 20), slice(0, 30))])
    rest = (depth > 0) & ~masks.any(axis=0)
    share = rest.sum() / (depth > 0).sum()
    found = superpoints_from_masks(masks, image, depth, intrinsics, num_segments=num_segments)
    expected = segment_superpoints(
        image, np.where(rest, depth, 0), intrinsics, num_segments=max(1, round(num_segments * share))
    )
    pairs = np.unique(np.stack([found[rest], expected[rest]]), axis=1)
    assert pairs.shape[1] == expected.max() + 1 == len(np.unique(found[rest]))
    assert not np.isin(found[rest], found[masks.any(axis=0) & (depth > 0)]).any()


def test_of_masks_of_one_size_the_later_overwrites():
    """Many of them, which a sort that is not stable would mix up."""
    depth = np.full((8, 120), 1.0, np.float32)
    masks = np.stack([rectangle(slice(0, 8), slice(2 * index, 2 * index + 5), (8, 120)) for index in range(57)])
    image, intrinsics = np.zeros((8, 120, 3), np.uint8), np.array([[90.0, 0, 60], [0, 90.0, 4], [0, 0, 1]])
    found = superpoints_from_masks(masks, image, depth, intrinsics)
    np.testing.assert_array_equal(found[:, :114], (np.arange(114) // 2)[None].repeat(8, 0))


def test_what_is_no_measurement_is_in_no_superpoint(frame):
    image, depth, intrinsics = frame
    depth[25, 10:14] = np.nan, np.inf, -np.inf, -1
    found = superpoints_from_masks(np.stack([TABLE, CUP]), image, depth, intrinsics)
    np.testing.assert_array_equal(found[25, 8:16] < 0, [False] * 2 + [True] * 4 + [False] * 2)


def test_no_mask_at_all_gives_the_default(frame):
    image, depth, intrinsics = frame
    found = superpoints_from_masks(np.zeros((0, 60, 80), bool), image, depth, intrinsics)
    np.testing.assert_array_equal(found, segment_superpoints(image, depth, intrinsics))


def test_masks_of_another_size_are_taken_at_the_nearest_pixel(frame):
    image, depth, intrinsics = frame
    masks = np.stack([TABLE, CUP])
    large = masks.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(
        superpoints_from_masks(large, image, depth, intrinsics),
        superpoints_from_masks(masks, image, depth, intrinsics),
    )


@pytest.mark.parametrize("size", [(7, 11), (90, 30), (1, 1)])
def test_a_pixel_has_the_mask_that_its_centre_lies_in(frame, size):
    _, depth, intrinsics = frame
    depth[:] = 2
    masks = np.random.default_rng(0).random((3, *size)) < 0.5
    rows, columns = ((np.arange(count) + 0.5) / count for count in (60, 80))
    places = (rows * size[0]).astype(int), (columns * size[1]).astype(int)
    # So that each mask is seen, the largest lies below all others.
    expected = np.full((60, 80), -1)
    for index in np.argsort([-mask[np.ix_(*places)].sum() for mask in masks], kind="stable"):
        expected[masks[index][np.ix_(*places)]] = index
    found = superpoints_from_masks(masks, frame[0], depth, intrinsics)
    pairs = np.unique(np.stack([expected, found])[:, expected >= 0], axis=1)
    assert pairs.shape[1] == len(np.unique(expected[expected >= 0])) == len(np.unique(found[expected >= 0]))


def test_folder_of_masks(frame, tmp_path):
    image, depth, intrinsics = frame
    Image.fromarray(TABLE).save(tmp_path / "0.png")
    Image.fromarray(np.uint8(CUP) * 255).save(tmp_path / "1.png")
    masks = load_masks(tmp_path)
    np.testing.assert_array_equal(masks, [TABLE, CUP])
    np.testing.assert_array_equal(
        superpoints_from_masks(tmp_path, image, depth, intrinsics),
        superpoints_from_masks(masks, image, depth, intrinsics),
    )
    opaque = np.concatenate([np.uint8(CUP)[..., None].repeat(3, -1), np.full((60, 80, 1), 255, np.uint8)], -1)
    Image.fromarray(opaque).save(tmp_path / "1.png")
    np.testing.assert_array_equal(load_masks(tmp_path), [TABLE, CUP])
    # Grey with transparency; 16 bits, of which a conversion to 8 would leave nothing; and one that is turned.
    Image.fromarray(opaque[..., 2:]).save(tmp_path / "1.png")
    np.testing.assert_array_equal(load_masks(tmp_path), [TABLE, CUP])
    Image.fromarray(CUP.astype(np.uint16)).save(tmp_path / "1.png")
    np.testing.assert_array_equal(load_masks(tmp_path), [TABLE, CUP])
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(CUP[::-1, ::-1]).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(load_masks(tmp_path), [TABLE, CUP])
    Image.fromarray(CUP[:30]).save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"2\.png: mask is \(30, 80\); expected \(60, 80\)"):
        load_masks(tmp_path)


def test_malformed_masks(frame, tmp_path):
    with pytest.raises(ValueError, match="no PNG file"):
        load_masks(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(60, 80\) and dtype bool; expected bool \[M, H, W\]"):
        superpoints_from_masks(TABLE, *frame)
    with pytest.raises(ValueError, match="dtype uint8"):
        superpoints_from_masks(np.uint8(TABLE)[None], *frame)


def test_masks_of_a_generator(frame):
    """A stand-in with the interface of transformers' pipeline: the real one needs torchvision."""

    def generator(image, points_per_batch):
        assert isinstance(image, Image.Image) and image.size == (80, 60) and points_per_batch == 16
        return {"masks": [TABLE, CUP], "scores": np.array([0.9, 0.8])}

    found = superpoints_from_mask_generator(generator, *frame, points_per_batch=16)
    np.testing.assert_array_equal(found, superpoints_from_masks(np.stack([TABLE, CUP]), *frame))
    # As tensors, too, and of how many segments the rest is made.
    given = {"masks": [torch.from_numpy(TABLE), torch.from_numpy(CUP)]}
    found = superpoints_from_mask_generator(lambda image: given, *frame, num_segments=7)
    expected = superpoints_from_masks(np.stack([TABLE, CUP]), *frame, num_segments=7)
    np.testing.assert_array_equal(found, expected)
    assert expected.max() != superpoints_from_masks(np.stack([TABLE, CUP]), *frame).max()
    found = superpoints_from_mask_generator(lambda image: {"masks": []}, *frame)
    np.testing.assert_array_equal(found, superpoints_from_masks(np.zeros((0, 60, 80), bool), *frame))


def test_a_model_by_name_is_the_pipeline_of_transformers(frame, monkeypatch):
    made = []

    def pipeline(*task, **options):
        made.append((task, options))
        return lambda image: {"masks": [CUP]}

    monkeypatch.setattr("transformers.pipeline", pipeline)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    load_mask_generator("some/sam", revision="v2", device="cpu")
    found = superpoints_from_mask_generator("some/sam", *frame)
    assert made == [
        (("mask-generation",), {"model": "some/sam", "revision": "v2", "device": "cpu"}),
        (("mask-generation",), {"model": "some/sam", "revision": None, "device": None}),
    ]
    np.testing.assert_array_equal(found, superpoints_from_masks(CUP[None], *frame))


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_model_by_name_without_torchvision():
    with pytest.raises(ImportError, match=r"torchvision.*bifusion_hf\[openclip\]"):
        load_mask_generator("facebook/sam-vit-base")


def test_a_random_sam_model_by_name(frame, tmp_path):
    torchvision = pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))
    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except RuntimeError as error:
        pytest.skip(f"torchvision does not fit torch: {error}")
    from transformers import SamConfig, SamImageProcessor, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_pos_feats": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
            "mlp_dim": 32,
            "global_attn_indexes": [0],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    SamModel(config).save_pretrained(tmp_path)
    SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    options = {"points_per_crop": 4, "pred_iou_thresh": -100, "stability_score_thresh": -1}
    found = superpoints_from_mask_generator(str(tmp_path), *frame, **options)
    assert ((found >= 0) == (frame[1] > 0)).all()
    assert (found != superpoints_from_masks(np.zeros((0, 60, 80), bool), *frame)).any()
