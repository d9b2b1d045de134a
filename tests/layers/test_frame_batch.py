import dataclasses

import pytest
import torch

from bifusion_hf.layers import frame_batch
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS, FrameBatch, superpoints_present


def frames_of(make_batch, *num_points):
    batch = make_batch(num_points)
    return FrameBatch(**{name: batch[name] for name in FORWARD_INPUTS})


def test_parts_are_of_consecutive_frames(make_batch):
    frames = frames_of(make_batch, 50, 40, 30, 20, 60, 10)
    parts = frames.split(3)
    assert [part.batch_size for part in parts] == [2, 2, 2]
    for name, value in vars(frames).items():
        if name in FORWARD_INPUTS:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value), name
    without = dataclasses.replace(frames, pixel_values=None).split(2)
    assert [part.pixel_values for part in without] == [None, None] and without[1].batch_size == 3


def test_real_points_are_those_of_the_mask_and_go_back_to_their_places(make_batch):
    frames = frames_of(make_batch, 7, 5)
    assert frames.sample.tolist() == [0] * 7 + [1] * 5
    rows = frames.real(frames.points)
    assert torch.equal(rows, torch.cat([frames.points[0], frames.points[1, :5]]))
    assert torch.equal(frames.pad(rows + 1), torch.where(frames.point_mask.unsqueeze(2), frames.points + 1, 0))
    count = frames.superpoint_mask.shape[1]
    expected = torch.cat([frames.superpoint_ids[0], count + frames.superpoint_ids[1, :5]])
    assert torch.equal(frames.point_superpoints, expected)


def test_without_padding_no_row_is_moved(make_batch):
    frames = frames_of(make_batch, 7, 7)
    assert frames.real(frames.points).data_ptr() == frames.points.data_ptr()
    assert torch.equal(frames.real(frames.points), torch.cat(list(frames.points)))
    apart = frames.points.transpose(1, 2).contiguous().transpose(1, 2)
    rows = frames.real(apart)
    assert rows.is_contiguous() and torch.equal(rows, frames.real(frames.points))
    assert torch.equal(frames.pad(rows), frames.points) and frames.pad(rows).data_ptr() == rows.data_ptr()
    one_less = frames_of(make_batch, 7, 6)
    assert len(one_less.real(one_less.points)) == 13 and one_less.pad(one_less.real(one_less.points))[1, 6].eq(0).all()


def test_positions_stay_in_float32_where_colours_and_image_are_cast(make_batch):
    cast = frames_of(make_batch, 7, 5).cast(torch.bfloat16)
    assert cast.points.dtype == cast.point_pixels.dtype == cast.camera_rotations.dtype == torch.float32
    assert cast.point_colors.dtype == cast.pixel_values.dtype == torch.bfloat16
    assert frames_of(make_batch, 7, 5).cast(torch.float64).points.dtype == torch.float64


def test_each_input_that_is_missing_or_of_another_shape_is_named(make_batch, small_config):
    config, frames = small_config("residual"), frames_of(make_batch, 7, 5)
    frames.check(config)
    shapes = {"point_colors": "2, 7, 3", "pixel_values": "2, 3, any, any", "point_pixels": "2, 7, 2"}
    shapes |= dict.fromkeys(("point_mask", "superpoint_ids", "point_visible"), "2, 7") | {
        "camera_rotations": "2, 3, 3"
    }
    for name in FORWARD_INPUTS[1:]:
        wanted = rf"{name} is missing; fusion_type 'residual' expects \[{shapes[name]}\]"
        with pytest.raises(ValueError, match=wanted):
            dataclasses.replace(frames, **{name: None}).check(config)
    for name in FORWARD_INPUTS:
        value = getattr(frames, name)
        # One more along the last axis, but for images, whose size is free.
        longer = value[:1] if name == "pixel_values" else torch.cat([value, value[..., :1]], dim=-1)
        with pytest.raises(ValueError, match=f"{name} has shape"):
            dataclasses.replace(frames, **{name: longer}).check(config)
    for name in ("point_mask", "point_visible"):
        with pytest.raises(ValueError, match=f"{name} has dtype torch.float32; expected torch.bool"):
            dataclasses.replace(frames, **{name: getattr(frames, name).float()}).check(config)


def test_superpoints_are_present_up_to_the_last_one_of_a_sample():
    ids = torch.tensor([[2, 0, 1, 3], [0, 0, 1, -1], [0, 7, -5, 1]])
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False]])
    expected = [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert superpoints_present(ids, mask).tolist() == expected
    assert superpoints_present(ids[1:], mask[1:]).tolist() == [row[:2] for row in expected[1:]]


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([[0, 0, 0], [0, 1, 1], [-1, -1, -1]], (3, 3, 0), r"point_mask has no point in samples \[2\]"),
        ([[0, 0, 0], [0, -1, 1]], (3, 3), "superpoint_ids is negative at a real point"),
        (
            [[0, 2, 2], [0, 1, 0], [1, 1, 0]],
            (3, 3, 2),
            r"superpoint_ids of samples \[0, 2\] have gaps; expected 0..S-1",
        ),
        ([[0, 1, 3]], (3,), r"of samples \[0\] have gaps"),
        ([[0, 1, 900]], (3,), r"of samples \[0\] have gaps"),
    ],
)
def test_superpoints_that_are_no_numbering_are_refused(ids, counts, message):
    ids = torch.tensor(ids)
    with pytest.raises(ValueError, match=message):
        superpoints_present(ids, torch.arange(3) < torch.tensor(counts)[:, None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_that_came_in_half_precision_are_warned_of_where_they_are_used(
    make_batch, small_config, monkeypatch, dtype
):
    warned = []
    monkeypatch.setattr(frame_batch.logger, "warning_once", warned.append)
    frames = frames_of(make_batch, 7, 5)
    colors = {"point_colors": frames.point_colors.to(dtype), "pixel_values": frames.pixel_values.to(dtype)}
    dataclasses.replace(frames, **colors).check(small_config("residual"))
    assert not warned
    positions = ("points", "point_pixels", "camera_rotations")
    frames = dataclasses.replace(frames, **{name: getattr(frames, name).to(dtype) for name in positions})
    for config, used in (
        (small_config("residual"), positions),
        (small_config("residual", use_film=False), positions[:2]),
        (small_config("none"), positions[:1]),
    ):
        warned.clear()
        frames.check(config)
        assert [text.split(", in which points move")[0] for text in warned] == [
            f"{name} has dtype {dtype}" for name in used
        ]
