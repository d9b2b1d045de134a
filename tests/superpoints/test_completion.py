import numpy as np
from frame_factory import make_frame

from bifusion_hf.superpoints.completion import complete_superpoints
from bifusion_hf.superpoints.segmentation import segment_superpoints


def test_without_given_superpoints_the_whole_frame_is_segmented():
    frame = make_frame()
    arguments = (frame.image, frame.depth, frame.intrinsics)
    found = complete_superpoints(None, *arguments, num_segments=40, color_blur=0.05)
    np.testing.assert_array_equal(found, segment_superpoints(*arguments, num_segments=40, color_blur=0.05))
    assert (found != complete_superpoints(None, *arguments, num_segments=40)).any()


def test_what_is_complete_stays_the_same_object():
    frame = make_frame()
    # Nothing is asked of pixels without depth.
    given = np.where(frame.depth > 0, 7, -1)
    assert complete_superpoints(given, frame.image, frame.depth, frame.intrinsics, num_segments=40) is given


def test_a_left_out_part_gets_its_share_of_segments_numbered_behind_the_given_ones():
    frame = make_frame()
    # Nearer than a metre, as on a table.
    frame.depth = frame.depth / 4
    given = np.full((120, 160), -1)
    given[:, :40] = 4
    found = complete_superpoints(given, frame.image, frame.depth, frame.intrinsics, num_segments=40)
    np.testing.assert_array_equal(found[:, :40], 4)
    rest = np.where(np.arange(160) >= 40, frame.depth, 0)
    measured = np.count_nonzero(rest) / np.count_nonzero(frame.depth)
    alone = segment_superpoints(frame.image, rest, frame.intrinsics, num_segments=round(40 * measured))
    np.testing.assert_array_equal(found[rest > 0], alone[rest > 0] + 5)


def test_a_single_pixel_left_out_is_a_superpoint():
    frame = make_frame(holes=False)
    given = np.zeros((120, 160), int)
    given[50, 70] = -3
    found = complete_superpoints(given, frame.image, frame.depth, frame.intrinsics, num_segments=40)
    given[50, 70] = 1
    np.testing.assert_array_equal(found, given)
