import numpy as np
import pytest
import torch
from frame_factory import make_frame

from bifusion_hf.data.alignment import (
    ALIGNMENT_THRESHOLD,
    alignment_error,
    batch_alignment_errors,
    check_alignment,
    sample_image,
)
from bifusion_hf.processing_bifusion import BiFusionProcessor


SUPERPOINTS = np.arange(240 * 320).reshape(240, 320) // 1000


@pytest.fixture(scope="module", params=[None, (120, 160)])
def processor(request):
    return BiFusionProcessor(num_points=4000, image_size=request.param)


@pytest.fixture(scope="module")
def sample(processor):
    return processor.prepare_frame(make_frame(240, 320, superpoints=SUPERPOINTS))


def test_sampling_equals_grid_sample():
    rng = np.random.default_rng(0)
    image, pixels = rng.random((7, 11, 3)).astype(np.float32), rng.random((500, 2)).astype(np.float32)
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.from_numpy(2 * pixels - 1)[None, :, None],
        padding_mode="border",
        align_corners=False,
    )
    np.testing.assert_allclose(sample_image(image, pixels), expected[0, :, :, 0].T, atol=1e-5)


def test_sampling_of_a_single_row_or_column():
    column = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)
    np.testing.assert_allclose(sample_image(column, np.array([[0.5, 0.1], [0.2, 0.5], [0.9, 1.0]]))[:, 0], [0, 2, 4])
    row = column.reshape(1, 5, 1)
    values = sample_image(row, np.array([[0.0, 0.5], [0.6, 0.2], [1.7, 0.5], [-0.4, 3.0]]))
    np.testing.assert_allclose(values[:, 0], [0, 2.5, 4, 0])
    assert values.dtype == np.float32


def grey_sample(differences, frame_id="grey"):
    """An image of one grey, and points that differ from it by so much."""
    return {
        "image": np.full((4, 6, 3), 100, np.uint8),
        "point_pixels": np.full((len(differences), 2), 0.5, np.float32),
        "point_visible": np.ones(len(differences), dtype=bool),
        "point_rgb": np.repeat(100 + np.array(differences)[:, None], 3, axis=1).astype(np.uint8),
        "frame_id": frame_id,
    }


def test_the_error_is_the_mean_of_absolute_differences_and_may_be_eight():
    assert alignment_error(grey_sample([8, -8, 2, 0])) == pytest.approx(4.5 / 255)
    assert check_alignment(grey_sample([8, -8])) == 8 / 255
    with pytest.raises(ValueError, match="difference grey 8.5/255; expected at most 8.0/255"):
        check_alignment(grey_sample([8, -9]))


def test_only_the_frames_above_the_threshold_are_named():
    batch = {"alignment_errors": torch.tensor([8 / 255, 9 / 255, 0, 10 / 255], dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"mean colour difference b 9.0/255, d 10.0/255; expected"):
        check_alignment({**batch, "frame_ids": list("abcd")}, BiFusionProcessor())


def test_a_good_sample_passes(sample, processor):
    limit = 2 / 255 if processor.image_size is None else ALIGNMENT_THRESHOLD
    assert alignment_error(sample) < limit
    assert check_alignment(sample) == alignment_error(sample)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("direction", [-1, 1])
def test_a_shift_of_eight_pixels_is_caught(sample, axis, direction):
    native = sample["image"].shape[0] == 240
    shift = 8 if native else 4
    bad = {**sample, "image": np.roll(sample["image"], direction * shift, axis=axis)}
    with pytest.raises(ValueError, match=r"misaligned.*synthetic 0 [\d.]+/255; expected at most 8.0/255"):
        check_alignment(bad)


def test_swapped_channels_are_caught(sample):
    with pytest.raises(ValueError, match="misaligned"):
        check_alignment({**sample, "image": sample["image"][..., ::-1]})


def test_the_threshold_is_a_choice(sample):
    swapped = {**sample, "image": sample["image"][..., ::-1]}
    assert check_alignment(swapped, threshold=1.0) > ALIGNMENT_THRESHOLD


def test_hidden_points_do_not_count(sample):
    bad = {**sample, "point_rgb": sample["point_rgb"].copy(), "point_visible": np.arange(4000) < 100}
    bad["point_rgb"][100:] = 255 - bad["point_rgb"][100:]
    assert check_alignment(bad) < ALIGNMENT_THRESHOLD
    with pytest.raises(ValueError, match="synthetic 0: point_visible is False for all 4000"):
        check_alignment({**sample, "point_visible": np.zeros(4000, bool)})


def test_batches_are_measured_frame_by_frame(sample, processor):
    swapped = {**sample, "image": sample["image"][..., ::-1], "frame_id": "bgr"}
    short = {**sample}
    for name in ("points", "point_rgb", "point_pixels", "point_visible", "superpoint_ids", "pixel_indices"):
        short[name] = sample[name][:1000]
    short["instance"], short["semantic"] = sample["instance"][:1000], sample["semantic"][:1000]
    # Neither hidden points nor padding count, whatever their colours.
    short["point_visible"] = np.arange(1000) < 900
    short["point_rgb"] = np.where(short["point_visible"][:, None], short["point_rgb"], 0).astype(np.uint8)
    batch = processor.collate([sample, short, swapped])
    batch["point_visible"][1, 1000:] = True
    errors = batch_alignment_errors(batch, processor)
    expected = [alignment_error(value) for value in (sample, short, swapped)]
    np.testing.assert_allclose(errors, expected, atol=1e-5)
    half = {**batch, "pixel_values": batch["pixel_values"].bfloat16(), "point_colors": batch["point_colors"].half()}
    np.testing.assert_allclose(batch_alignment_errors(half, processor), expected, atol=1e-2)
    with pytest.raises(ValueError, match=r"mean colour difference bgr [\d.]+/255;"):
        check_alignment(batch, processor)
    assert check_alignment(processor.collate([sample, short]), processor) == pytest.approx(max(expected[:2]), abs=1e-5)


def test_errors_measured_before_the_jitter_are_taken(sample, processor):
    batch = processor.collate([{**sample, "alignment_error": 0.5}, {**sample, "alignment_error": 0.001}])
    errors = batch_alignment_errors(batch, processor)
    assert errors.dtype == np.float64 and errors == pytest.approx([0.5, 0.001])
    with pytest.raises(ValueError, match="synthetic 0 127.5/255"):
        check_alignment(batch, processor)


def test_a_batch_needs_the_processor(sample, processor):
    with pytest.raises(ValueError, match="needs the processor"):
        check_alignment(processor.collate([sample]))
