import numpy as np
import pytest
from frame_factory import POSE, make_frame

from bifusion_hf.data.alignment import ALIGNMENT_THRESHOLD, alignment_error, check_alignment
from bifusion_hf.data.projection import prepare_cloud, project_points, visible_points
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.fixture(scope="module", params=[True, False])
def frame(request):
    return make_frame(240, 320, with_pose=request.param)


@pytest.fixture(scope="module")
def cloud(frame):
    """The frame's own points as a cloud that has forgotten its pixels."""
    keep = np.flatnonzero(frame.depth)[::7]
    return {
        "points": frame.unproject().reshape(-1, 3)[keep],
        "colors": frame.image.reshape(-1, 3)[keep],
        "superpoints": keep // 3000,
        "pixels": keep,
    }


def prepare(cloud, frame, processor=None, **options):
    processor = processor or BiFusionProcessor()
    return prepare_cloud(cloud["points"], cloud["colors"], cloud["superpoints"], frame, processor, **options)


def test_projection_undoes_the_unprojection(frame, cloud):
    pixels, depth = project_points(cloud["points"], frame)
    rows, columns = np.divmod(cloud["pixels"], 320)
    np.testing.assert_allclose(pixels, np.stack([(columns + 0.5) / 320, (rows + 0.5) / 240], axis=1), atol=1e-5)
    np.testing.assert_allclose(depth, frame.depth[rows, columns], atol=1e-5)
    assert visible_points(pixels, depth, frame).all()


def test_projected_sample_equals_that_of_the_frame(frame, cloud):
    processor = BiFusionProcessor(num_points=10**6)
    projected = prepare(cloud, frame, processor)
    only = np.zeros(frame.depth.size, bool)
    only[cloud["pixels"]] = True
    part = make_frame(240, 320, depth=np.where(only.reshape(240, 320), frame.depth, 0), image=frame.image)
    part.camera_to_world = frame.camera_to_world
    direct = processor.prepare_frame(part)
    for name in ("points", "point_rgb", "point_pixels", "camera_rotation", "point_offset", "image"):
        np.testing.assert_allclose(projected[name], direct[name], atol=2e-5, err_msg=name)
    assert projected["point_visible"].all()
    assert projected["superpoint_map"] is None
    assert (projected["pixel_indices"] == -1).all()


def test_what_the_camera_does_not_see_is_not_visible(frame):
    centre = np.zeros(3) if frame.camera_to_world is None else frame.camera_to_world[:3, 3]
    axes = frame.camera_rotation
    rows, columns = 100, 120
    surface = frame.unproject()[rows, columns]
    ray = surface - centre
    points = np.stack(
        [
            surface,
            centre + 1.005 * ray,  # within the sensor's noise
            centre + 1.2 * ray,  # behind the surface
            centre + 0.8 * ray,  # in front of it
            centre - ray,  # behind the camera
            centre,
            centre + 5 * axes[:, 0] + axes[:, 2],  # outside the image
        ]
    )
    pixels, depth = project_points(points, frame)
    assert visible_points(pixels, depth, frame).tolist() == [True, True, False, False, False, False, False]
    assert visible_points(pixels, depth, frame, 0.0, 0.3).tolist()[:4] == [True] * 4
    hole = make_frame(240, 320, depth=np.where(np.indices((240, 320))[0] == rows, 0, frame.depth))
    assert not visible_points(pixels, depth, hole).any()


def test_invisible_points_stay_with_a_place_inside_the_image(frame, cloud):
    far = {name: np.concatenate([value, value[:500]]) for name, value in cloud.items()}
    far["points"][-500:] += 40
    far["points"][-1] = 0 if frame.camera_to_world is None else frame.camera_to_world[:3, 3]
    sample = prepare(far, frame, BiFusionProcessor(num_points=10**6))
    assert not sample["point_visible"][-500:].any()
    assert sample["point_visible"][:-500].all()
    assert np.isfinite(sample["point_pixels"]).all()
    assert ((sample["point_pixels"] >= 0) & (sample["point_pixels"] <= 1)).all()
    assert alignment_error(sample) < 2 / 255


def test_a_good_pose_passes_and_wrong_ones_are_caught(frame, cloud):
    pose = POSE if frame.camera_to_world is not None else np.eye(4)
    assert check_alignment(prepare(cloud, frame)) < 2 / 255
    angle = np.deg2rad(6)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    shift = np.eye(4)
    shift[2, 3] = 0.1
    for change in (turn, shift):
        points = cloud["points"].astype(np.float64)
        # Moving the cloud is the same as a wrong pose, and works without one too.
        moved = (points - pose[:3, 3]) @ change[:3, :3].T + pose[:3, 3] + change[:3, 3]
        sample = prepare({**cloud, "points": moved}, frame)
        # The depth test alone does not tell: some surfaces still agree.
        assert sample["point_visible"].mean() > 0.1
        with pytest.raises(ValueError, match="misaligned"):
            check_alignment(sample, threshold=ALIGNMENT_THRESHOLD)


def test_labels_and_sampling(frame, cloud):
    processor = BiFusionProcessor(num_points=1000)
    semantic = frame.semantic.flat[cloud["pixels"]]
    instance = frame.instance.flat[cloud["pixels"]]
    sample = prepare(cloud, frame, processor, semantic=semantic, instance=instance)
    again = prepare(cloud, frame, processor)
    other = prepare(cloud, frame, processor, rng=np.random.default_rng(9))
    np.testing.assert_array_equal(sample["points"], again["points"])
    assert not np.array_equal(sample["points"], other["points"])
    assert len(sample["points"]) == 1000
    assert sample["instance"].max() == 2
    assert len(np.unique(sample["superpoint_ids"])) == sample["superpoint_ids"].max() + 1
    batch = processor.collate([sample])
    assert batch["superpoint_maps"] == [None]


def test_a_projected_cloud_gives_instances_without_a_pixel_map(frame, cloud):
    from types import SimpleNamespace

    import torch

    processor = BiFusionProcessor(num_points=2000)
    batch = processor.collate([prepare(cloud, frame, processor)])
    masks = torch.full((1, 1, 2000), -9.0)
    masks[..., :500] = 9
    outputs = SimpleNamespace(
        class_queries_logits=torch.tensor([[[9.0, 0]]]), masks_queries_logits=masks, query_mask=torch.ones(1, 1).bool()
    )
    result = processor.post_process_instance_segmentation(outputs, batch)[0]
    assert result["segmentation"] is None
    assert result["segments_info"][0]["num_points"] == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": np.zeros((5, 2))}, r"synthetic 0: points has shape \(5, 2\)"),
        ({"points": np.full((5, 3), np.nan)}, "synthetic 0: points .*expected finite"),
        ({"colors": np.zeros((5, 3))}, "synthetic 0: colors has shape .* dtype float64; expected uint8"),
        ({"superpoints": np.zeros(4, int)}, r"synthetic 0: superpoints has shape \(4,\).*expected integers"),
        ({"superpoints": None}, "synthetic 0: superpoints are missing"),
    ],
)
def test_malformed_clouds_are_refused(frame, cloud, change, message):
    with pytest.raises(ValueError, match=message):
        prepare({**cloud, **change}, frame)


def test_a_cloud_of_another_place_is_refused(frame, cloud):
    with pytest.raises(ValueError, match="synthetic 0: none of .* points agrees with the depth image"):
        prepare({**cloud, "points": cloud["points"] + 100}, frame)
