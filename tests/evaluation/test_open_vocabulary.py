"""The route by text on networks and image-text models that read the answer off the colours."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from frame_factory import POSE
from perfect_network import PerfectNetwork, ReadingEncoder, readable_frame, readable_processor
from test_scene_evaluator import FeaturedNetwork

from bifusion_hf.data.dataset import FrameDataset
from bifusion_hf.data.frames import frame_features, frame_from_row, frame_to_row
from bifusion_hf.evaluation import evaluate_model
from bifusion_hf.evaluation.evaluator import FramePrediction
from bifusion_hf.evaluation.open_vocabulary import OpenVocabulary
from bifusion_hf.evaluation.scene_evaluator import evaluate_scenes
from bifusion_hf.labeling import TextLabeler
from bifusion_hf.labels import INSTANCE_CLASS_NAMES, SCANNET200_CLASS_NAMES


NAMES = dict(enumerate(SCANNET200_CLASS_NAMES))


def make_vocabulary(labels="scannet200", confused=(), **overrides):
    labeler = TextLabeler(ReadingEncoder(confused), templates="{}", none_texts=())
    return OpenVocabulary(labeler, labels, readable_processor(False, **overrides), NAMES)


@pytest.fixture(scope="module")
def rows():
    frames = [readable_frame(seed) for seed in range(3)]
    for index, frame in enumerate(frames):
        frame.frame_id = f"frame {index}"
    return datasets.Dataset.from_list([frame_to_row(frame) for frame in frames], features=frame_features())


def measure(rows, vocabulary):
    processor = readable_processor(False)
    network = PerfectNetwork(processor)
    network.config.id2label = {0: "object"}
    return evaluate_model(
        network,
        processor,
        FrameDataset(rows, vocabulary.processor),
        batch_size=2,
        name_instances=vocabulary.namer(rows),
        truth_processor=vocabulary.processor,
        extra_protocol=vocabulary.protocol,
    )


def test_right_names_have_ap_1(rows):
    results = measure(rows, make_vocabulary())
    assert results["class_aware"]["all_ap_50%"] == results["class_agnostic"]["all_ap_50%"] == 1.0
    assert list(results["class_aware"]["classes"]) == list(INSTANCE_CLASS_NAMES)
    # Chair, table and bed are of the head.
    assert results["class_aware"]["head"]["ap50%"] == 1.0
    assert results["semantic"]["mean_iou"] == 1.0
    protocol = results["protocol"]
    assert protocol["candidate_labels"] == "scannet200" and protocol["num_frames"] == 3
    assert protocol["labeler"]["model"] == "reader" and protocol["labeler"]["mode"] == "crops"
    assert protocol["labeler"]["templates"] == ["{}"]


def test_wrong_names_cost_the_classes_alone(rows):
    results = measure(rows, make_vocabulary(confused=["table"]))
    classes = results["class_aware"]["classes"]
    assert classes["bed"]["ap50%"] == 1.0 and classes["table"]["ap50%"] == 0.0
    assert 0 < classes["chair"]["ap50%"] < 1
    assert results["class_agnostic"]["all_ap_50%"] == 1.0


def test_instances_of_other_classes_are_void(rows):
    results = measure(rows, make_vocabulary(["bed", "chair"]))
    classes = results["class_aware"]["classes"]
    assert {name: row["num_instances"] for name, row in classes.items()} == {"bed": 3, "chair": 3}
    assert results["class_agnostic"]["num_instances"] == 6
    assert results["protocol"]["candidate_labels"] == ["bed", "chair"]


@pytest.mark.parametrize("confused", [(), ("table",)])
def test_objects_of_scenes_are_named(confused):
    vocabulary = make_vocabulary(confused=confused)
    processor = readable_processor(False)
    walks = {}
    for scene in "ab":
        poses = [POSE.copy() for _ in range(3)]
        for index, pose in enumerate(poses):
            pose[:3, 3] += 0.01 * index
        walks[scene] = [readable_frame(index, camera_to_world=pose) for index, pose in enumerate(poses)]
    results = evaluate_scenes(
        FeaturedNetwork(processor), processor, walks, voxel_size=0.1, min_points=20, vocabulary=vocabulary
    )
    classes = results["class_aware"]["classes"]
    assert classes["bed"]["ap50%"] == 1.0 and classes["table"]["ap50%"] == (0.0 if confused else 1.0)
    assert results["class_agnostic"]["all_ap_50%"] == 1.0
    assert results["protocol"]["views_per_object"] == 3 and results["protocol"]["num_scenes"] == 2


def test_classes_of_the_data_s_own(rows):
    """Chair, table and bed are the only things, numbered as a data set of one's own numbers them."""

    def renumber(row):
        frame = frame_from_row(row)
        places = np.full(201, -1)
        places[[0, 1, 2, 3, 10]] = np.arange(5)
        frame.semantic = places[frame.semantic]
        return frame_to_row(frame)

    own = datasets.Dataset.from_list([renumber(row) for row in rows], features=frame_features())
    labeler = TextLabeler(ReadingEncoder(), templates="{}", none_texts=())
    names = dict(enumerate(["wall", "floor", "chair", "table", "bed"]))
    options = {"compare_semantics": False}
    vocabulary = OpenVocabulary(labeler, ["bed", "chair", "table"], readable_processor(False), names, **options)
    results = measure(own, vocabulary)
    assert results["class_aware"]["all_ap_50%"] == 1.0 and results["class_aware"]["num_instances"] == 9
    assert "semantic" not in results


def test_what_does_not_fit_is_refused(rows):
    with pytest.raises(ValueError, match=r"candidate_labels has \['mug', 'floor'\], which are no classes"):
        make_vocabulary(["chair", "mug", "floor"])
    labeler = TextLabeler(ReadingEncoder(), none_texts=())
    with pytest.raises(ValueError, match="the network has classes of its own"):
        OpenVocabulary(labeler, "scannet200", readable_processor(True), NAMES)
    twice = datasets.concatenate_datasets([rows, rows])
    with pytest.raises(ValueError, match="3 frames have the name of another"):
        make_vocabulary().namer(twice)


def test_the_processor_of_the_network_stays_as_it_is():
    processor = readable_processor(False)
    labeler = TextLabeler(ReadingEncoder(), templates="{}", none_texts=())
    vocabulary = OpenVocabulary(labeler, "bed, chair", processor, NAMES)
    assert processor.label_names == ["object"] and processor.class_to_label is None
    assert vocabulary.processor.label_names == vocabulary.protocol["candidate_labels"] == ["bed", "chair"]


def test_what_shows_nothing_has_no_name_of_its_own():
    vocabulary = make_vocabulary(["bed", "chair"])
    nothing = vocabulary.best(np.zeros((0, 201), np.float32))
    assert nothing.shape == (0,) and nothing.dtype == np.int64
    # Object 7 is a chair, the others were in no frame.
    chair = np.eye(201, dtype=np.float32)[[SCANNET200_CLASS_NAMES.index("chair")]]
    session = SimpleNamespace(views=SimpleNamespace(mean=lambda ids: (np.array([7]), chair)))
    assert vocabulary.name_objects(session, [3, 7, 9]) == [0, 1, 0]
    prediction = FramePrediction("frame 3", np.arange(4), np.ones((1, 4), bool), np.ones(1), np.zeros(1, int))
    with pytest.raises(ValueError, match="frame 3: its points have no depth image"):
        vocabulary.name_prediction(prediction, np.zeros((2, 2, 3), np.uint8), {"superpoint_map": None})
