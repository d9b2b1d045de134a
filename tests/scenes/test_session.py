import json

import numpy as np
import pytest
import torch
from frame_factory import POSE, make_frame

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.io.files import DataFileError
from bifusion_hf.scenes import GeometricMerging, SceneSession
from bifusion_hf.scenes.merging import FrameInstances
from bifusion_hf.scenes.voxel_map import voxel_keys


SUPERPOINTS = np.arange(60 * 80).reshape(60, 80) // 80 // 10 * 8 + np.arange(60 * 80).reshape(60, 80) % 80 // 10


@pytest.fixture(scope="module")
def network(small_config):
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config(num_labels=1)).eval()
    return model, BiFusionProcessor.from_config(model.config, num_points=600)


class Oracle(SceneSession):
    """Finds the true instances of a frame, with a feature for each: what the session makes of them is under test."""

    def _predict(self, frame):
        result, instances, memory = super()._predict(frame)
        ids = np.unique(frame.instance[(frame.instance >= 0) & (frame.instance < 40)])
        points = result["points"]
        labels = frame.instance.reshape(-1)[result["pixel_indices"]]
        masks = labels == ids[:, None]
        low_high = [np.concatenate([points[mask].min(axis=0), points[mask].max(axis=0)]) for mask in masks]
        segmentation = np.full(frame.depth.shape, -1)
        for row, index in enumerate(ids):
            segmentation[frame.instance == index] = row
        count = len(ids)
        info = [{"id": row, "label_id": 0, "label": "object", "score": 0.8} for row in range(count)]
        result.update(
            segmentation=segmentation, segments_info=info, point_masks=masks, scores=np.full(count, 0.8),
            labels=np.zeros(count, dtype=np.int64),
        )  # fmt: skip
        instances.scores, instances.labels = result["scores"], result["labels"]
        instances.boxes = np.array(low_high).reshape(-1, 6)
        instances.class_logits, instances.queries = np.zeros((count, 2)), np.zeros((count, 0))
        instances.features = np.eye(50)[ids]
        instances.semantics = np.eye(200)[[10 + index for index in ids]]
        return result, instances, memory


def frames(count=4, **overrides):
    """The same view with other noise: the camera moves by a few millimetres."""
    for index in range(count):
        pose = POSE.copy()
        pose[:3, 3] += 0.003 * index
        yield make_frame(60, 80, seed=index, camera_to_world=pose, superpoints=SUPERPOINTS, **overrides)


def state_of(session):
    return {
        **{f"bank {name}": value for name, value in session.bank.state().items()},
        **{f"map {name}": value for name, value in session.map.state().items()},
        "frames": np.array(session.frame_ids),
        "poses": session.poses,
        "next": np.array(session.bank.next_id),
    }


def assert_same_state(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def test_ids_stay_and_objects_are_merged(network):
    session = Oracle(*network, voxel_size=0.1)
    for number, frame in enumerate(frames()):
        result = session.update(frame)
        assert result["ids"].tolist() == [0, 1, 2]
        for place, index in enumerate((3, 10, 17)):
            assert set(np.unique(result["segmentation"][frame.instance == index])) == {place}
        assert (result["segmentation"][(frame.instance < 0) | (frame.instance == 40)] == -1).all()
        assert [info["num_views"] for info in result["segments_info"]] == [number + 1] * 3
        assert [info["is_new"] for info in result["segments_info"]] == [number == 0] * 3
        np.testing.assert_array_equal(session.frame_segmentation(number), result["segmentation"])
    objects = session.objects()
    assert sorted(item.id for item in objects) == [0, 1, 2] and all(item.num_views == 4 for item in objects)
    frame = next(frames())
    for item in objects:
        seen = frame.unproject()[(frame.instance == (3, 10, 17)[item.id]) & (frame.depth > 0)]
        assert 0.6 < item.score <= 0.8 and item.label == "object" and item.label_id == 0
        np.testing.assert_allclose(item.box_3d, [*seen.min(axis=0), *seen.max(axis=0)], atol=0.1)
        np.testing.assert_allclose(item.points.mean(axis=0), seen.mean(axis=0), atol=0.1)
        assert item.points.shape == item.colors.shape and item.colors.dtype == np.uint8
        assert np.mean(session.ids_at(item.points) == item.id) == 1
    points, colors, ids = session.cloud()
    assert len(points) == len(colors) == len(ids) == len(session.map)
    assert session.ids_at(np.array([[50.0, 50.0, 50.0]])).tolist() == [-1]
    assert session.objects(min_views=5) == [] and len(session.objects(min_views=4)) == 3


def test_the_cloud_is_the_mean_of_what_was_measured(network):
    session, frame = Oracle(*network, voxel_size=0.2), make_frame(60, 80, superpoints=SUPERPOINTS)
    # Some of it is nearer than a metre.
    frame.depth *= 0.5
    result = session.update(frame)
    assert result["segmentation"].dtype == session.frame_segmentation(0).dtype == np.int32
    assert json.loads(json.dumps(result["segments_info"])) == result["segments_info"], "plain values"
    assert len(session.objects()) == 3, "one view is enough"
    measured = frame.depth > 0
    positions, pixels = frame.unproject()[measured], frame.image[measured]
    keys = voxel_keys(positions, 0.2)
    points, colors, ids = session.cloud()
    assert len(points) == len(np.unique(keys))
    for key, point, color in zip(voxel_keys(points, 0.2), points, colors, strict=True):
        np.testing.assert_allclose(point, positions[keys == key].mean(axis=0), atol=1e-5)
        assert np.abs(color - pixels[keys == key].mean(axis=0)).max() < 1
    larger = Oracle(*network, voxel_size=0.2)
    larger.update(make_frame(60, 80, image_scale=2, superpoints=SUPERPOINTS, depth=frame.depth))
    assert np.abs(larger.cloud()[1].astype(int) - colors).mean() < 3, "of pictures larger than the depth too"
    points[:] = 0
    assert (session.cloud()[0] != 0).any(), "what is given away is a copy"
    # An object that owns a voxel is one; with none left it is given where that is asked for.
    place = np.flatnonzero(ids == 2)
    others = np.setdiff1d(np.arange(len(ids)), place[:1])
    for _ in range(2):
        session.map.add(session.map.index.keys[others], points[others], points[others], np.zeros(len(others)))
    owned, rest = session.objects()
    assert (owned.id, rest.id) == (2, 0) and owned.score > rest.score + 0.1, "the best comes first"
    assert len(owned.points) == 1 and owned.score == pytest.approx(0.8)
    session.map.forget(np.array([2]))
    assert [item.id for item in session.objects()] == [0]
    *_, lost = session.objects(min_points=0)
    assert len(lost.points) == 0 and lost.score == 0 and (lost.box_3d == session.bank["boxes"][lost.id]).all()
    lost.box_3d[:] = 0
    assert session.bank["boxes"][lost.id].any(), "what is given away is a copy"


def test_labels_are_those_of_most_views_by_their_names(small_config):
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config(num_labels=2)).eval()
    class_to_label = [-1, -1, *[0, 1] * 99]
    processor = BiFusionProcessor.from_config(model.config, num_points=600, class_to_label=class_to_label)
    model.config.id2label = {0: "box", 1: "thing"}

    class TwoLabels(Oracle):
        def _predict(self, frame):
            result, instances, memory = super()._predict(frame)
            # The last column is "no object".
            instances.class_logits = np.array([[[2.0, 0, 9], [0, 3, 9]][self.num_frames]] * 3)
            return result, instances, memory

    session = TwoLabels(model, processor, voxel_size=0.1)
    for frame, expected in zip(frames(2), ((0, "box"), (1, "thing")), strict=True):
        result = session.update(frame)
        for item in session.objects():
            assert (item.label_id, item.label, item.name) == (*expected, expected[1])
            assert item.semantic_label is not None, "told beside the name"
    assert {segment["name"] for segment in result["segments_info"]} == {"object"}, "the frame's own label"
    plain = SceneSession(model, processor, threshold=0.0)
    found = {segment["label"] for segment in plain.update(next(frames()))["segments_info"]}
    assert found and found <= {"box", "thing"}


def test_settings_of_a_session(network, online_network):
    session = SceneSession(*network)
    assert (session.threshold, session.voxel_size, session.max_objects, session.views_per_object) == (
        0.3,
        0.04,
        2000,
        3,
    )
    assert session.memory == "scene" and session.keep_frames and session.max_instances is None
    assert SceneSession(*online_network, max_instances=7).max_instances == 7
    few = SceneSession(*network, threshold=0.0, max_instances=2, max_objects=1, views_per_object=1)
    frame = next(frames())
    assert 0 < len(few.update(frame)["ids"]) <= 2 < len(SceneSession(*network, threshold=0.0).update(frame)["ids"])


def test_the_network_runs_through(network):
    model, processor = network
    session = SceneSession(model, processor, threshold=0.0, merging=GeometricMerging(min_overlap=0.1))
    for frame in frames(3):
        result = session.update(frame)
        shown = np.unique(result["segmentation"][result["segmentation"] >= 0])
        assert set(shown) == set(result["ids"]) == {info["id"] for info in result["segments_info"]}
        for row, index in enumerate(result["ids"]):
            inside = np.zeros(frame.depth.size, dtype=bool)
            inside[result["pixel_indices"][result["point_masks"][row]]] = True
            assert inside[(result["segmentation"] == index).ravel()].any()
        expected = frame.unproject().reshape(-1, 3)[result["pixel_indices"]]
        np.testing.assert_allclose(result["points"], expected, atol=1e-5)
    assert len(session.bank) and (session.bank["views"] > 1).any()
    for name in session.bank.MEANS:
        assert session.bank[name].dtype == np.float64, name
    np.testing.assert_allclose(np.linalg.norm(session.bank["features"][session.bank["views"] == 1], axis=1), 1)


def test_frames_that_cannot_be_placed_are_refused_and_change_nothing(network):
    session = SceneSession(*network, threshold=0.0)
    first, second = frames(2)
    session.update(first)
    before = state_of(session)
    with pytest.raises(ValueError, match="synthetic 7: camera_to_world is None"):
        session.update(make_frame(60, 80, with_pose=False, seed=7))
    for broken in (np.full((4, 4), np.nan), np.diag([1.0, 1, 2, 1]), np.eye(3)):
        frame = make_frame(60, 80, seed=8)
        frame.camera_to_world = broken
        with pytest.raises(ValueError, match="synthetic 8: camera_to_world"):
            session.update(frame)
    far = make_frame(60, 80, seed=9)
    far.camera_to_world = np.array([[1.0, 0, 0, 1e9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(ValueError, match="from the origin"):
        session.update(far)
    with pytest.raises(ValueError, match="expected an RGBDFrame"):
        session.update({"image": first.image})
    assert_same_state(before, state_of(session))
    session.update(second)
    assert session.frame_ids == ["synthetic 0", "synthetic 1"]
    session.reset()
    assert session.num_frames == 0 and session.objects() == [] and len(session.cloud()[0]) == 0


@pytest.mark.parametrize("merging", ["geometric", "none", GeometricMerging(min_overlap=0.3)])
def test_a_loaded_session_goes_on_as_if_it_had_never_stopped(network, tmp_path, merging):
    path = tmp_path / "scene.safetensors"
    whole = Oracle(*network, merging=merging, voxel_size=0.07, threshold=0.25, max_objects=7)
    # A session without a frame can be kept too.
    whole.save(path)
    whole = Oracle.load(path, *network)
    for frame in frames(2):
        whole.update(frame)
    whole.save(path)
    resumed = Oracle.load(path, *network)
    assert resumed.merging == whole.merging or merging == "none"
    for name in ("threshold", "voxel_size", "max_objects", "max_instances", "keep_frames"):
        assert getattr(resumed, name) == getattr(whole, name)
    for frame in list(frames(4))[2:]:
        first, second = whole.update(frame), resumed.update(frame)
        np.testing.assert_array_equal(first["segmentation"], second["segmentation"])
    assert_same_state(state_of(whole), state_of(resumed))
    for index in range(4):
        np.testing.assert_array_equal(whole.frame_segmentation(index), resumed.frame_segmentation(index))
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_scene_are_named(network, tmp_path):
    path = tmp_path / "scene.safetensors"
    with pytest.raises(DataFileError, match=r"scene\.safetensors"):
        SceneSession.load(path, *network)
    path.write_bytes(b"nothing")
    with pytest.raises(DataFileError, match="no readable scene"):
        SceneSession.load(path, *network)
    from safetensors.numpy import save_file

    for metadata in (None, {"scene": "[]"}, {"scene": '{"format": "room"}'}):
        save_file({"a": np.zeros(1)}, path, metadata)
        with pytest.raises(DataFileError, match="not the file of a scene"):
            SceneSession.load(path, *network)
    save_file({"a": np.zeros(1)}, path, {"scene": "{"})
    with pytest.raises(DataFileError, match="no readable scene"):
        SceneSession.load(path, *network)
    later = {"format": "bifusion_hf scene", "bifusion_hf_version": "99.0.0"}
    save_file({"a": np.zeros(1)}, path, {"scene": json.dumps(later)})
    with pytest.raises(ValueError, match=r"scene\.safetensors: this checkpoint was saved by bifusion_hf 99\.0"):
        SceneSession.load(path, *network)


def test_the_scene_forgets_the_weakest_above_its_limit(network):
    session = Oracle(*network, merging="none", max_objects=5, voxel_size=0.1, labeler=Axes())
    for frame in frames(6):
        ids = session.update(frame)["ids"]
        assert set(ids) <= set(session.bank["ids"].tolist())
        # 4 is a tenth under the limit.
        assert len(session.bank) == (3 if session.num_frames == 1 else 4)
    assert session.bank.next_id == 18
    alive = set(session.bank["ids"].tolist())
    assert set(session.views.state()["ids"].tolist()) == alive
    assert set(np.unique(session.cloud()[2])) <= alive | {-1}
    assert set(np.unique(session.frame_segmentation(0))) <= alive | {-1}


def test_of_few_views_the_lower_score_is_forgotten_first(network):
    session = Oracle(*network, merging="none", max_objects=8, voxel_size=0.1)
    scores = np.array([0.9, 0.2, 0.1, 0.1, 0.5])
    seen = FrameInstances(
        scores, np.zeros(5, int), np.zeros((5, 6)), np.zeros((5, 2)), np.eye(50)[:5], np.zeros((5, 0)), np.eye(200)[:5]
    )
    session.bank.merge(seen, np.full(5, -1))
    session.bank.merge(FrameInstances(*(value[2:4] for value in vars(seen).values())), np.array([2, 3]))
    first, second = frames(2)
    session.update(first)
    assert session.bank["ids"].tolist() == list(range(8)), "as many as there may be"
    # The objects 2 and 3 have two views, and 7 of 11 remain; the other three are of this frame.
    session.update(second)
    assert session.bank["ids"].tolist() == [0, 2, 3, 7, 8, 9, 10]


@pytest.mark.parametrize("merging", ["geometric", "none"])
def test_an_object_without_votes_is_forgotten_where_it_could_not_be_found(network, merging, monkeypatch):
    sessions = []
    for is_soon in (True, False):
        session = Oracle(*network, merging=merging, voxel_size=0.1)
        for frame in frames(4):
            session.update(frame)
        # As if others had outvoted it; what is there when it comes by again is a new object.
        session.map.forget(np.array([0]))
        after = session.bank.next_id + 1 if is_soon else 10**9
        monkeypatch.setattr("bifusion_hf.scenes.session.LOOK_FOR_LOST_AFTER", after)
        for frame in frames(4):
            assert set(session.update(frame)["ids"]) <= set(session.bank["ids"].tolist())
        sessions.append(session)
    looked, kept = sessions
    lost = set(kept.bank["ids"].tolist()) - set(looked.bank["ids"].tolist())
    assert lost == ({0} if merging == "geometric" else set())
    assert looked.bank.next_id == kept.bank.next_id
    for first, second in zip(looked.objects(), kept.objects(), strict=True):
        assert (first.id, first.score, first.num_views) == (second.id, second.score, second.num_views)
    np.testing.assert_array_equal(looked.cloud()[2], kept.cloud()[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merging": "magic"}, "merging is 'magic'; expected one of none, geometric, learned"),
        ({"merging": "learned"}, "needs a network with a box head and a merge head"),
        ({"voxel_size": 0}, "voxel_size is 0"),
        ({"max_objects": 0}, "max_objects is 0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"views_per_object": 0}, "views_per_object is 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(network, settings, message):
    with pytest.raises(ValueError, match=message):
        SceneSession(*network, **settings)


def test_maps_of_frames_only_where_they_are_kept(network):
    session = Oracle(*network, keep_frames=False)
    session.update(next(frames()))
    with pytest.raises(ValueError, match="keep_frames"):
        session.frame_segmentation(0)


def test_enlarged_frames_leave_their_points_in_metres(network, online_network):
    model, processor = network
    frame = next(frames())
    enlarging = BiFusionProcessor.from_config(model.config, num_points=processor.num_points, reference_depth=20.0)
    points = SceneSession(model, enlarging).update(frame)["points"]
    np.testing.assert_allclose(points, SceneSession(*network).update(frame)["points"], atol=1e-4)
    for merging in (None, "geometric"):
        with pytest.raises(ValueError, match="reference_depth is 20.0; frame adapters and learned merging"):
            SceneSession(online_network[0], enlarging, merging=merging)


class Axes:
    """Labels an instance by its place in the frame: a feature of its own for each of the factory's three things."""

    templates, settings = ("{}",), {"model": "axes", "mode": "crops"}

    def __init__(self):
        self.looked = []

    def instance_features(self, image, masks):
        self.looked.append(len(masks))
        columns = [int(np.nonzero(mask)[1].mean() * 3 / mask.shape[1]) for mask in masks]
        return np.eye(3, dtype=np.float32)[columns] if len(masks) else np.zeros((0, 0), dtype=np.float32)

    def text_features(self, texts):
        return np.eye(3, dtype=np.float32)[[("left", "middle", "right").index(text) for text in texts]]

    def label(self, features, labels, top_k):
        return [{"label": labels[int(row.argmax())], "score": 1.0, "labels": []} for row in features]


def test_objects_are_found_by_text_and_kept_with_the_session(network, tmp_path):
    labeler = Axes()
    session = Oracle(*network, voxel_size=0.1, labeler=labeler, views_per_object=2)
    for number, frame in enumerate(frames(4), 1):
        session.update(frame)
        # An object of one view is found too.
        assert len(session.find("left")) == 3 and len(session.find("left", min_views=number)) == 3
        assert session.find("left", min_views=number + 1) == []
    # Two views of each of three things, and then only views that show more of a thing.
    assert labeler.looked[:2] == [3, 3] and sum(labeler.looked[2:]) < 6
    left, right = session.find("left", top_k=1), session.find("right", top_k=3)
    assert len(left) == 1 and left[0].similarity == pytest.approx(1) and type(left[0].similarity) is float
    assert session.find("  left ", top_k=1)[0].item.id == left[0].item.id
    assert [match.similarity for match in right] == sorted((match.similarity for match in right), reverse=True)
    assert left[0].item.id != right[0].item.id and left[0].item.id == right[-1].item.id or right[1].similarity == 0
    labels = session.label(["left", "middle", "right"], 1)
    assert sorted(found["label"] for found in labels.values()) == ["left", "middle", "right"]
    assert labels[left[0].item.id]["label"] == "left"

    session.save(tmp_path / "scene.safetensors")
    loaded = Oracle.load(tmp_path / "scene.safetensors", *network, labeler=Axes())
    assert [match.item.id for match in loaded.find("right")] == [match.item.id for match in session.find("right")]
    without = Oracle.load(tmp_path / "scene.safetensors", *network)
    with pytest.raises(ValueError, match="the session has no labeler"):
        without.find("left")
    # Saved again without it, the features stay.
    without.save(tmp_path / "again.safetensors")
    assert len(Oracle.load(tmp_path / "again.safetensors", *network, labeler=Axes()).find("left")) == 3
    other = Axes()
    other.settings = {"model": "axes", "mode": "dense"}
    with pytest.raises(ValueError, match="was made with the labeler"):
        Oracle.load(tmp_path / "scene.safetensors", *network, labeler=other)
    for text in ("", " ", None):
        with pytest.raises(ValueError, match="expected what to look for"):
            session.find(text)
    with pytest.raises(ValueError, match="top_k is 0"):
        session.find("left", top_k=0)


def test_objects_are_called_by_their_semantic_class(network):
    session = Oracle(*network, voxel_size=0.1)
    result = [session.update(frame) for frame in frames(2)][-1]
    names = network[0].config.semantic_id2label
    # The oracle is sure of the class ten after the instance's number.
    assert {item.name for item in session.objects()} == {names[10 + index] for index in (3, 10, 17)}
    assert {item.semantic_probability for item in session.objects()} == {1.0}
    assert {segment["name"] for segment in result["segments_info"]} == {item.name for item in session.objects()}
    session.processor.name_threshold, before = 1.1, session.processor.name_threshold
    try:
        assert {item.name for item in session.objects()} == {"object"}
    finally:
        session.processor.name_threshold = before


def test_sessions_of_earlier_releases_have_no_names_yet(network, tmp_path, monkeypatch):
    session = Oracle(*network, voxel_size=0.1)
    for frame in frames(2):
        session.update(frame)
    state = session.bank.state()
    monkeypatch.setattr(session.bank, "state", lambda: {k: v for k, v in state.items() if k != "semantics"})
    session.save(tmp_path / "scene.safetensors")
    loaded = Oracle.load(tmp_path / "scene.safetensors", *network)
    assert {item.name for item in loaded.objects()} == {"object"}
    for frame in frames(4):
        loaded.update(frame)
    assert {item.semantic_probability for item in loaded.objects()} == {4 / 6}
