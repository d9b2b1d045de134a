import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from perfect_network import PerfectNetwork, readable_frame, readable_processor

from bifusion_hf.data.scannet.annotations import VertexLabels
from bifusion_hf.data.scannet.scan_mesh import ScanMesh
from bifusion_hf.evaluation.results import format_results
from bifusion_hf.evaluation.scene_average_precision import (
    IdentitySteadiness,
    SceneAveragePrecision,
    masks_at_vertices,
    vote_segments,
)
from bifusion_hf.evaluation.scene_evaluator import SceneEvaluator, SceneTruth, evaluate_scenes, on_mesh
from bifusion_hf.labels import raw_id_to_index
from bifusion_hf.scenes import SceneSession


class FeaturedNetwork(PerfectNetwork):
    """With what a session asks for beside masks and classes."""

    def __init__(self, processor):
        super().__init__(processor)
        self.config.id2label = dict(enumerate(processor.label_names))

    def forward(self, points, point_colors, **kwargs):
        outputs = super().forward(points, point_colors, **kwargs)
        # Things of different classes have different colours.
        outputs.point_features = torch.cat([point_colors[..., :1], torch.ones_like(point_colors[..., :1])], dim=2)
        return outputs


def walk(count=4):
    for index in range(count):
        pose = POSE.copy()
        pose[:3, 3] += 0.01 * index
        yield readable_frame(seed=index, camera_to_world=pose)


@pytest.mark.parametrize("class_aware", [False, True])
def test_a_perfect_network_has_ap_1_over_the_scene(class_aware):
    processor = readable_processor(class_aware)
    network = FeaturedNetwork(processor)
    results = evaluate_scenes(
        network, processor, {"a": list(walk()), "b": list(walk(3))}, voxel_size=0.1, min_points=20
    )
    for part in ("class_agnostic", "class_aware")[: 1 + class_aware]:
        assert results[part]["all_ap_50%"] == 1.0, part
        assert results[part]["num_instances"] == 6
    assert results["class_agnostic"]["all_ap"] > 0.85
    identity = results["identity"]
    assert identity["id_share"] == 1.0 and identity["id_switches"] == 0 and identity["num_objects"] == 6
    assert identity["num_frames"] == 7 and identity["coverage"] > 0.95
    assert results["protocol"]["num_scenes"] == 2 and results["protocol"]["merging"] == "geometric"
    assert "keep one id" in format_results(results)


def test_without_merging_the_scene_falls_apart():
    processor = readable_processor(False)
    results = evaluate_scenes(
        FeaturedNetwork(processor), processor, {"a": list(walk())}, merging="none", voxel_size=0.1, min_points=20
    )
    assert results["protocol"]["masks"] == "union"
    assert results["class_agnostic"]["num_predictions"] == 12 and results["class_agnostic"]["num_instances"] == 3
    assert results["identity"]["id_share"] < 0.3 and results["identity"]["id_switches"] == 9


def test_truth_of_a_scene_is_without_stuff_and_has_one_class_an_object():
    processor = readable_processor(True)
    truth = SceneTruth(processor, voxel_size=0.05)
    for frame in walk(2):
        instance, keys = truth.add(frame)
        measured = frame.depth > 0
        assert len(instance) == len(keys) == np.count_nonzero(measured)
        things = (frame.semantic >= 2)[measured]
        np.testing.assert_array_equal(instance, np.where(things, frame.instance[measured], -1))
    ids, labels = truth.labels()
    # Chair, table and bed are the classes 2, 3 and 10; labels leave out wall and floor.
    assert labels.tolist() == [0, 1, 8] and set(np.unique(ids)) == {-1, 0, 1, 2} and len(ids) == len(truth.map)
    with pytest.raises(ValueError, match="no instance labels"):
        truth.add(make_frame(instance=None))


@pytest.mark.parametrize("class_aware", [False, True])
def test_ids_of_objects_are_numbered_whatever_they_are(class_aware):
    """Beginning at 0, with gaps, in the order of the ids."""
    found = []
    for first, step in ((0, 1), (1, 1), (5, 40)):
        truth = SceneTruth(readable_processor(class_aware), voxel_size=0.05)
        for frame in walk(2):
            # Objects are 3, 10 and 17.
            frame.instance = np.where(frame.instance >= 0, first + (frame.instance - 3) // 7 * step, -1)
            truth.add(frame)
        found.append(truth.labels())
    for ids, labels in found:
        np.testing.assert_array_equal(ids, found[0][0])
        assert labels.tolist() == ([0, 1, 8] if class_aware else [0, 0, 0])
    assert np.unique(found[0][0]).tolist() == [-1, 0, 1, 2]


def test_evaluation_refuses_frames_without_pose_and_unknown_masks():
    processor = readable_processor(False)
    with pytest.raises(ValueError, match="camera_to_world is None"):
        evaluate_scenes(FeaturedNetwork(processor), processor, {"a": [readable_frame(camera_to_world=None)]})
    with pytest.raises(ValueError, match="masks is 'all'"):
        SceneEvaluator(processor, masks="all")
    assert SceneSession(FeaturedNetwork(processor), processor).merging.name == "geometric"


def mesh_of(frame, shift=0.0):
    """The pixels of a frame as a mesh; each object is cut into segments of its columns, the rest is one."""
    measured = frame.depth > 0
    columns = np.broadcast_to(np.arange(frame.depth.shape[1]) // 4, frame.depth.shape)
    instance, semantic = frame.instance[measured], frame.semantic[measured]
    raw_ids = np.arange(1400)
    raw_of = {
        int(index): int(raw_ids[raw_id_to_index(raw_ids) == index][0]) for index in np.unique(semantic) if index >= 0
    }
    return ScanMesh(
        frame.unproject()[measured].astype(np.float64) + shift,
        np.zeros((0, 3), dtype=np.int64),
        100 * (instance + 1) + np.where(instance >= 0, columns[measured], 0),
        VertexLabels(instance, np.array([raw_of.get(int(index), 0) for index in semantic])),
    )


@pytest.mark.parametrize("class_aware", [False, True])
def test_scenes_are_measured_over_the_vertices_of_their_meshes(class_aware):
    processor = readable_processor(class_aware)
    network, frames = FeaturedNetwork(processor), list(walk())
    options = {"voxel_size": 0.1, "min_points": 20}
    results = evaluate_scenes(network, processor, {"a": frames}, meshes={"a": mesh_of(frames[0])}, **options)
    assert results["protocol"]["points"] == "vertices of the scan's mesh, masks voted by segment"
    for part in ("class_agnostic", "class_aware")[: 1 + class_aware]:
        # Objects of the frames reach a little over those of the mesh; whole segments do not.
        assert results[part]["all_ap"] == 1.0 and results[part]["num_instances"] == 3
    with pytest.raises(ValueError, match=r"lie 0.\d+ m from the vertices of the mesh .*axisAlignment"):
        evaluate_scenes(network, processor, {"a": frames}, meshes={"a": mesh_of(frames[0], 0.7)}, **options)
    # An object that no frame saw counts as missed.
    extra = mesh_of(frames[0])
    far = ScanMesh(
        np.concatenate([extra.vertices, extra.vertices[:50] + 60]),
        extra.faces,
        np.concatenate([extra.segments, np.full(50, 9999)]),
        VertexLabels(
            np.concatenate([extra.labels.instance, np.full(50, 90)]),
            np.concatenate([extra.labels.raw_ids, np.full(50, extra.labels.raw_ids.max())]),
        ),
    )
    missed = evaluate_scenes(network, processor, {"a": frames}, meshes={"a": far}, **options)["class_agnostic"]
    assert missed["num_instances"] == 4 and missed["all_ap_50%"] < 1


def test_points_beyond_a_decimetre_from_the_mesh_are_of_another():
    corners = np.stack(np.meshgrid([0.0, 1, 2], [0.0, 1, 2], [0.0]), axis=-1).reshape(-1, 3)
    mesh = ScanMesh(corners, np.zeros((0, 3), dtype=np.int64), np.arange(9), VertexLabels(np.zeros(9), np.zeros(9)))
    masks = np.eye(9, dtype=bool)
    np.testing.assert_array_equal(on_mesh(corners + [0, 0, 0.095], masks, mesh), masks)
    with pytest.raises(ValueError, match=r"lie 0\.12 m from the vertices of the mesh .*at most 0\.1 m"):
        on_mesh(corners + [0, 0, 0.12], masks, mesh)


def test_identity_of_a_hand_made_sequence():
    metric = IdentitySteadiness()
    # Object 0 is id 7, then 8, then 7 for two of its three points; object 1 is never found.
    metric.update([7, 7, -1, -1], [0, 0, 1, -1])
    metric.update([8, -1, -1, 3], [0, 0, 1, -1])
    metric.update([7, 7, 8, -1], [0, 0, 0, 1])
    metric.end_scene()
    # The next scene may use the same ids for other objects: no switch.
    metric.update([1, 1], [0, 0])
    metric.end_scene()
    result = metric.compute()
    assert result["id_switches"] == 2 and result["num_objects"] == 3 and result["num_frames"] == 4
    assert result["id_share"] == pytest.approx((4 / 6 + 1) / 2)
    assert result["coverage"] == pytest.approx((6 / 7 + 0 + 1) / 3)
    other = IdentitySteadiness()
    other.update([5], [0])
    other.end_scene()
    metric.merge(other)
    assert metric.compute()["num_objects"] == 4 and metric.compute()["id_share"] == pytest.approx((4 / 6 + 2) / 3)
    with pytest.raises(ValueError, match="pred_ids"):
        metric.update([1], [0, 0])


@pytest.mark.parametrize(
    ("frames", "switches"),
    [
        # Of equal numbers the lowest id leads, whichever led before.
        ([[7, 7, 7, 7], [8, 8, 7, 7], [7, 7, 9, 9]], 0),
        ([[8, 8, 8, 8], [8, 8, 7, 7], [8, 8, 8, 8]], 2),
        ([[8, 8, 8, 8], [8, 8, 8, 7], [9, 9, 8, 8]], 0),
        # A frame without it is no frame of another.
        ([[0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, -1, -1]], 0),
        ([[0, 0, 0, 0], [-1, -1, -1, -1], [-1, -1, -1, 1]], 1),
    ],
)
def test_an_object_is_led_by_its_most_frequent_id(frames, switches):
    metric = IdentitySteadiness()
    for pred_ids in frames:
        metric.update(pred_ids, [3, 3, 3, 3])
    metric.end_scene()
    assert metric.compute()["id_switches"] == metric.compute()["id_switches_per_object"] == switches


def test_scenes_of_several_processes_are_merged():
    rng = np.random.default_rng(0)
    whole, parts = SceneAveragePrecision(min_points=5), [SceneAveragePrecision(min_points=5) for _ in range(2)]
    for index in range(4):
        truth = rng.integers(-1, 4, 200)
        masks = np.array([(truth == instance) & (rng.random(200) < 0.9) for instance in range(4)])
        for metric in (whole, parts[index % 2]):
            metric.update(masks, rng.random(4) * 0 + 0.5 + 0.1 * index, None, truth, None)
            metric.identity.update(truth, truth)
            metric.identity.end_scene()
    parts[0].merge(parts[1])
    assert parts[0].compute() == whole.compute()


def test_masks_go_to_the_mesh_by_the_nearest_point_and_to_segments_by_majority():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    masks = np.array([[True, False, False], [False, True, True]])
    vertices = np.array([[-9.0, 0, 0], [0.4, 0, 0], [0.6, 0, 0], [1.4, 0, 0], [50, 0, 0]])
    on_mesh = masks_at_vertices(points, masks, vertices)
    assert on_mesh.tolist() == [[True, True, False, False, False], [False, False, True, True, True]]
    # Half of a segment is not more than half.
    voted = vote_segments(on_mesh, np.array([3, 3, 8, 8, 8]))
    assert voted.tolist() == [[True, True, False, False, False], [False, False, True, True, True]]
    voted = vote_segments(on_mesh, np.array([3, 8, 8, 3, 3]))
    assert voted.tolist() == [[False] * 5, [True, False, False, True, True]]
    assert vote_segments(np.zeros((0, 5), bool), np.arange(5)).shape == (0, 5)
    with pytest.raises(ValueError, match="expected"):
        masks_at_vertices(points, masks[:, :2], vertices)
    with pytest.raises(ValueError, match="segments"):
        vote_segments(on_mesh, np.array([1, 2]))
