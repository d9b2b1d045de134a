from types import SimpleNamespace

import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame
from perfect_network import PerfectNetwork, readable_frame, readable_processor

from bifusion_hf.data.scannet.annotations import VertexLabels
from bifusion_hf.data.scannet.scan_mesh import ScanMesh
from bifusion_hf.evaluation import scene_evaluator
from bifusion_hf.evaluation.results import format_results
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


def walk(count=4, shift=0.0):
    for index in range(count):
        pose = POSE.copy()
        pose[:3, 3] += shift
        pose[:3, 3] += 0.01 * index
        yield readable_frame(seed=index, camera_to_world=pose)


@pytest.mark.parametrize("class_aware", [False, True])
def test_a_perfect_network_has_ap_1_over_the_scene(class_aware):
    processor = readable_processor(class_aware)
    network = FeaturedNetwork(processor)
    # The second scene lies somewhere else.
    scenes = {"a": list(walk()), "b": list(walk(3, shift=20.0))}
    results = evaluate_scenes(network, processor, scenes, voxel_size=0.1, min_points=20)
    assert results["class_agnostic"]["num_predictions"] == 6
    for part in ("class_agnostic", "class_aware")[: 1 + class_aware]:
        assert results[part]["all_ap_50%"] == 1.0, part
        assert results[part]["num_instances"] == 6
    assert results["class_agnostic"]["all_ap"] > 0.85
    identity = results["identity"]
    assert identity["id_share"] == 1.0 and identity["id_switches"] == 0 and identity["num_objects"] == 6
    assert identity["num_frames"] == 7 and identity["coverage"] > 0.95
    assert results["protocol"] == {
        "num_scenes": 2,
        "points": "one for each voxel of 0.02 m that the frames saw",
        "masks": "votes",
        "min_points": 20,
        "iou_thresholds": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.25],
        "points_per_frame": 3000,
        "merging": "geometric",
        "score_threshold": 0.3,
        "voxel_size": 0.1,
        "max_objects": 2000,
    }
    assert str(results["protocol"]["iou_thresholds"][:2]) == "[0.5, 0.55]"
    table = format_results(results)
    assert "identity                     100.0 % of an object's points keep one id, 0.00 switches an object" in table


def test_labels_are_left_out_and_a_bar_is_shown_where_asked_for(capsys):
    processor = readable_processor(True)
    network, scenes = FeaturedNetwork(processor), {"a": list(walk(1))}
    options = {"voxel_size": 0.1, "class_agnostic": True, "masks": "union"}
    results = evaluate_scenes(network, processor, scenes, **options)
    assert "class_aware" not in results and "all_ap_50:95" not in results["class_agnostic"]
    assert results["protocol"]["masks"] == "union" and results["protocol"]["merging"] == "geometric"
    assert results["protocol"]["min_points"] == 100 and capsys.readouterr().err == ""
    options = {"voxel_size": 0.1, "include_95": True, "merging": "none", "masks": "votes", "progress": True}
    results = evaluate_scenes(network, processor, scenes, **options)
    assert "all_ap_50:95" in results["class_aware"] and "all_ap_50:95" in results["class_agnostic"]
    assert results["protocol"]["masks"] == "votes" and "1/1" in capsys.readouterr().err


def test_each_process_takes_its_own_scenes_and_tells_of_all(monkeypatch, capsys):
    processor = readable_processor(False)
    network, sessions = FeaturedNetwork(processor), []

    class Kept(SceneSession):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            sessions.append(self)

    monkeypatch.setattr(scene_evaluator, "SceneSession", Kept)
    scenes = {name: list(walk(1, shift)) for name, shift in (("a", 0.0), ("b", 10.0), ("c", 30.0))}
    metrics = []
    monkeypatch.setattr("accelerate.utils.gather_object", lambda value: metrics.extend(value) or list(metrics))
    for rank in (1, 0):
        accelerator = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        options = {"voxel_size": 0.1, "min_points": 20, "accelerator": accelerator, "progress": True}
        results = evaluate_scenes(network, processor, scenes, **options)
        assert ("2/2" in capsys.readouterr().err) == (rank == 0)
        # What the other process has comes in.
        assert results["protocol"]["num_scenes"] == (1 if rank else 3)
        assert results["protocol"]["points"].startswith("one for each voxel")
    assert results["class_agnostic"]["num_instances"] == 9 and results["identity"]["num_frames"] == 3
    # Maps of ids are not looked at again, so none is kept.
    assert [session.keep_frames for session in sessions] == [False, False]
    np.testing.assert_allclose(sessions[1].poses[0, :3, 3], POSE[:3, 3] + 30)


@pytest.mark.parametrize("masks", ["votes", "union"])
def test_objects_are_ranked_by_the_score_that_fits_their_masks(masks):
    """Votes that others won count against an object whose mask is what it won."""
    processor = readable_processor(False)
    network = FeaturedNetwork(processor)
    session = SceneSession(network, processor, merging="none", voxel_size=0.1)
    evaluator, given = SceneEvaluator(processor, masks=masks), []
    evaluator.metric.update = lambda *arguments: given.append(arguments)
    frames = list(walk(2))
    for frame in frames:
        # Some of it is nearer than a metre.
        frame.depth *= 0.5
    evaluator.run(session, frames)
    (found, scores, *_), objects = given[0], session.objects(min_points=0)
    assert len(found) == len(objects) == 6 and max(mask.mean() for mask in found) < 0.5
    if masks == "votes":
        assert list(scores) == [item.score for item in objects] and min(scores) < 0.6
    else:
        rows = session.bank.rows(np.array([item.id for item in objects]))
        assert list(scores) == session.bank["scores"][rows].tolist() and min(scores) > 0.9


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


def test_truth_of_frames_without_things_without_classes_and_without_depth():
    assert SceneTruth(readable_processor(False)).map.voxel_size == 0.02
    frame = next(walk(1))
    truth = SceneTruth(readable_processor(True), voxel_size=0.05)
    frame.instance = np.full_like(frame.instance, -1)
    truth.add(frame)
    ids, labels = truth.labels()
    assert (ids == -1).all() and labels.shape == (0,) and labels.dtype == np.int64
    frame = next(walk(1))
    holes = frame.depth == 0
    truth = SceneTruth(readable_processor(False), voxel_size=0.05)
    assert (frame.instance[holes] >= 0).any() and (truth.instance_map(frame)[holes] == -1).all()
    # Without classes, what has an id is a thing: the floor too.
    frame.semantic = None
    truth.add(frame)
    ids, labels = truth.labels()
    assert np.unique(ids).tolist() == [-1, 0, 1, 2, 3] and labels.tolist() == [0, 0, 0, 0]
    # The class is that of most of an object's pixels.
    frame = next(walk(1))
    rows, columns = np.nonzero(frame.instance == 3)
    some = columns < np.quantile(columns, 0.3)
    frame.semantic[rows[some], columns[some]] = 10
    truth = SceneTruth(readable_processor(True), voxel_size=0.05)
    frame.depth *= 0.4
    instance, keys = truth.add(frame)
    assert len(instance) == len(keys) == np.count_nonzero(frame.depth)
    assert truth.labels()[1].tolist() == [0, 1, 8]
    # The first class can be a thing.
    frame = next(walk(1))
    frame.semantic = np.where(frame.semantic == 2, 0, 1)
    processor = readable_processor(False, stuff_classes=(1,))
    things = np.unique(SceneTruth(processor).instance_map(frame)).tolist()
    assert things == [-1, 3]


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
    nothing = SceneEvaluator(processor).compute()["protocol"]
    assert (nothing["num_scenes"], nothing["min_points"], len(nothing["iou_thresholds"])) == (0, 100, 10)
    assert nothing["points"].startswith("one for each voxel") and nothing["masks"] == "votes"
    assert "class_aware" in SceneEvaluator(SimpleNamespace(label_names=["a", "b"])).compute()


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
    for distance in (0.095, 0.1):
        np.testing.assert_array_equal(on_mesh(corners + [0, 0, distance], masks, mesh), masks)
    with pytest.raises(ValueError, match=r"lie 0\.12 m from the vertices of the mesh .*at most 0\.1 m"):
        on_mesh(corners + [0, 0, 0.12], masks, mesh)
