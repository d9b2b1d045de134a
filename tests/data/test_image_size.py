import numpy as np
import pytest
from frame_factory import make_frame
from processing_examples import arguments

from bifusion_hf.data.alignment import ALIGNMENT_THRESHOLD, alignment_error
from bifusion_hf.data.image_size import fit_image
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.mark.parametrize("size", [(2, 300), (300, 2), (5, 2000)])
def test_a_strip_is_refused_before_it_grows(size):
    height, width = size
    intrinsics = [[max(size), 0, (width - 1) / 2], [0, max(size), (height - 1) / 2], [0, 0, 1]]
    frame = make_frame(*size, with_pose=False, intrinsics=np.array(intrinsics, dtype=float))
    with pytest.raises(ValueError, match=rf"synthetic 0: image is {size[0]}x{size[1]} .* at most 10 : 1; crop it"):
        BiFusionProcessor(image_size=240).prepare_frame(frame)
    # At its own size it is small.
    assert BiFusionProcessor().prepare_frame(frame)["image"].shape[:2] == size


def test_the_longest_image_that_is_no_strip():
    assert fit_image(np.zeros((10, 100, 3), np.uint8), 21).shape == (21, 210, 3)
    image = np.zeros((10, 101, 3), np.uint8)
    assert fit_image(image, None) is image
    with pytest.raises(ValueError, match="frame: image is 10x101"):
        fit_image(image, 21)


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


@pytest.mark.parametrize("target", [(11, 20), (22, 40), (5, 9)])
@pytest.mark.parametrize("is_upright", [False, True])
def test_an_aspect_may_be_one_pixel_off(target, is_upright):
    """Of an image of 10 x 20: one row more; the same at twice the size, where it is two; one column less at half."""
    image = np.zeros((20, 10, 3) if is_upright else (10, 20, 3), np.uint8)
    turned = target[::-1] if is_upright else target
    assert fit_image(image, turned).shape[:2] == turned
    # A pixel of the target is ten of a large image, and is allowed there as well.
    large, small = (412, 300) if is_upright else (300, 412), (40, 30) if is_upright else (30, 40)
    assert fit_image(np.zeros((*large, 3), np.uint8), small).shape[:2] == small
    wrong = tuple(side + 2 * (index == is_upright) for index, side in enumerate(turned))
    with pytest.raises(ValueError, match="expected the same aspect ratio"):
        fit_image(image, wrong)


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
