import json

import numpy as np
import pytest
from frame_factory import make_frame
from processing_examples import THING_LABELS, THING_NAMES
from transformers import AutoProcessor, pipeline

from bifusion_hf import BiFusionForInstanceSegmentation
from bifusion_hf.assets import SAMPLE_CHECKPOINT
from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.hub.pretrained import load_pretrained
from bifusion_hf.processing_bifusion import BiFusionProcessor


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_points": 0}, "num_points is 0"),
        ({"image_size": [240]}, r"image_size is \[240\]"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; expected three"),
        ({"color_std": [1, 1, 0]}, "color_std is .*expected positive"),
        ({"stuff_classes": [0, 200]}, r"stuff_classes is \[0, 200\]; expected semantic classes"),
        ({"nms_kernel": "soft"}, "nms_kernel is 'soft'"),
        ({"class_to_label": [0, 1]}, "class_to_label is .*expected 200 entries"),
        ({"class_to_label": [3] * 200}, "class_to_label is .*labels below 1"),
        ({"class_to_label": [1] * 200}, "class_to_label is .*labels below 1"),
        ({"class_to_label": [-2] * 200}, "class_to_label is .*labels below 1"),
        ({"image_size": 0}, "image_size is 0; expected a positive side"),
        ({"image_size": [240, 0]}, r"image_size is \[240, 0\]"),
        ({"image_size": [240, 320, 3]}, r"image_size is \[240, 320, 3\]"),
        ({"size_divisor": 0}, "size_divisor is 0; expected at least 1"),
        ({"image_std": [0.5] * 4}, "image_std is .*expected three"),
        ({"color_mean": [0.5] * 2}, "color_mean is .*expected three"),
        ({"color_std": [0.5] * 4}, "color_std is .*expected three"),
        ({"image_std": [1, 0, 1]}, "image_std is .*expected positive"),
        ({"superpoint_color_blur": -0.01}, "superpoint_color_blur is -0.01; expected metres"),
        ({"reference_depth": -0.1}, "reference_depth is -0.1; expected metres"),
        ({"stuff_classes": [-1]}, r"stuff_classes is \[-1\]; expected semantic classes"),
        ({"part_gap": -0.01}, "part_gap is -0.01; expected metres"),
        ({"name_threshold": -0.01}, "name_threshold is -0.01; expected a probability"),
        ({"name_threshold": 1.01}, "name_threshold is 1.01; expected a probability"),
    ],
)
def test_malformed_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BiFusionProcessor(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"num_points": 1, "image_size": 1, "size_divisor": 1, "name_threshold": 0, "part_gap": 0},
        {"image_size": [1, 1], "name_threshold": 1, "stuff_classes": [199], "nms_kernel": "gaussian"},
        {"class_to_label": [-1] * 199 + [1], "label_names": ["first", "second"]},
        {"class_to_label": [0] * 200},
        {"num_semantic_labels": 1, "stuff_classes": [0], "class_to_label": [-1]},
    ],
)
def test_settings_at_their_limits_are_taken(values):
    processor = BiFusionProcessor(**values)
    assert {name: getattr(processor, name) for name in values} == values


def test_defaults_are_those_that_the_sample_checkpoint_was_trained_with():
    """Its file says each of them; an argument that it sets otherwise is given here."""
    saved = json.loads((SAMPLE_CHECKPOINT / "processor_config.json").read_text())
    assert saved.pop("processor_class") == "BiFusionProcessor"
    own = {"num_points": 8000, "image_size": 240, "size_divisor": 16, "reference_depth": 1.5}
    assert {name: saved.pop(name) for name in own} == own
    default = BiFusionProcessor()
    assert {name: getattr(default, name) for name in saved} == saved
    # 20,000 points, as ESAM, and each frame in its own size.
    assert (default.num_points, default.min_instance_points) == (20000, 100)
    assert (default.image_size, default.size_divisor, default.reference_depth) == (None, 1, 0)


def test_settings_are_copies_of_what_was_given():
    given = {
        "image_size": [60, 80],
        **{name: [0.1, 0.2, 0.3] for name in ("image_mean", "image_std", "color_mean", "color_std")},
        "stuff_classes": [0, 1],
        "class_to_label": [-1, -1, *[0] * 198],
        "label_names": ["thing"],
    }
    before = {name: list(value) for name, value in given.items()}
    processor = BiFusionProcessor(**given)
    for value in given.values():
        value.append(7)
    assert {name: getattr(processor, name) for name in given} == before
    assert isinstance(processor.model_input_names, list)


def test_save_and_load_restore_every_value(tmp_path):
    processor = BiFusionProcessor(
        num_points=1234,
        image_size=(240, 320),
        image_mean=(0.1, 0.2, 0.3),
        color_std=(0.4, 0.5, 1 / 3),
        stuff_classes=(0, 1, 5),
        class_to_label=THING_LABELS,
        label_names=THING_NAMES,
        num_superpoints=99,
        sampling_seed=7,
        mask_threshold=0.45,
        max_instances=30,
        nms_kernel="gaussian",
        nms_sigma=1.5,
    )
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["processor_config.json"]
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    loaded = BiFusionProcessor.from_pretrained(tmp_path)
    names = set(BiFusionProcessor.__init__.__code__.co_varnames[1:17])
    assert names <= set(saved)
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(processor, name) for name in names}
    frame = make_frame()
    first, second = processor.prepare_frame(frame), loaded.prepare_frame(frame)
    for name in ("points", "image", "superpoint_ids", "class_labels"):
        np.testing.assert_array_equal(first[name], second[name])
    changed = BiFusionProcessor.from_pretrained(tmp_path, num_points=55)
    assert changed.num_points == 55
    assert changed.max_instances == 30


def test_from_config():
    agnostic = BiFusionProcessor.from_preset("tiny", image_size=[240, 320])
    assert (agnostic.num_points, agnostic.image_size, agnostic.class_to_label) == (8000, [240, 320], None)
    assert agnostic.label_names == ["object"]
    assert agnostic.min_instance_points == 40
    names = dict(enumerate(THING_NAMES))
    aware = BiFusionProcessor.from_config(BiFusionConfig(id2label=names))
    assert aware.class_to_label == THING_LABELS
    assert aware.label_names == THING_NAMES
    with pytest.raises(ValueError, match="the model has 3 labels and 198 classes.*class_to_label"):
        BiFusionProcessor.from_config(BiFusionConfig(num_labels=3))
    given = BiFusionProcessor.from_config(BiFusionConfig(num_labels=3), class_to_label=[-1, *[2] * 199])
    assert given.class_to_label == [-1, *[2] * 199] and given.label_names == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_labels_of_few_classes_are_those_beside_stuff_in_order():
    config = BiFusionConfig(num_labels=2, num_semantic_labels=4)
    assert BiFusionProcessor.from_config(config).class_to_label == [-1, -1, 0, 1]
    chosen = BiFusionProcessor.from_config(config, stuff_classes=[2, 0])
    assert (chosen.stuff_classes, chosen.class_to_label) == ([2, 0], [-1, 0, -1, 1])
    with pytest.raises(ValueError, match="2 labels and 3 classes beside stuff"):
        BiFusionProcessor.from_config(config, stuff_classes=[3])
    one = BiFusionConfig(num_labels=1, num_semantic_labels=3)
    assert BiFusionProcessor.from_config(one).class_to_label is None


def test_sides_fit_the_longer_side_of_a_patch():
    config = BiFusionConfig.from_preset("tiny")
    config.vision_config.patch_size = (16, 32)
    assert config.image_patch_size == (16, 32)
    assert BiFusionProcessor.from_config(config).size_divisor == 32
    assert BiFusionProcessor.from_config(BiFusionConfig.from_preset("sv3d")).size_divisor == 1


def test_a_preset_by_its_name():
    with pytest.raises(ValueError, match="no preset 'huge'; there are .*'full'.*'tiny'"):
        BiFusionProcessor.from_preset("huge")
    config = BiFusionConfig(num_labels=2, num_semantic_labels=4)
    processor = BiFusionProcessor.from_preset("sv3d", config, num_points=50)
    assert (processor.part_gap, processor.num_points, processor.num_semantic_labels) == (0, 50, 4)
    assert BiFusionProcessor.from_preset("sv3d", part_gap=0.2).part_gap == 0.2


def test_a_file_from_before_masks_had_parts_leaves_them_whole(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"processor_class": "BiFusionProcessor", "num_points": 70}')
    processor = BiFusionProcessor.from_pretrained(tmp_path)
    assert (processor.num_points, processor.part_gap) == (70, 0)


@pytest.mark.parametrize("config", [None, "config.json"])
def test_a_folder_without_a_processor_is_refused_by_name(config, tmp_path):
    """As transformers' Trainer leaves it; there a default processor would take its place."""
    BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("tiny")).save_pretrained(tmp_path)
    if config is None:
        (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=rf"{tmp_path} has no processor_config.json.*num_points"):
        BiFusionProcessor.from_pretrained(tmp_path)
    if config is not None:
        for load in (
            load_pretrained,
            AutoProcessor.from_pretrained,
            lambda folder: pipeline("rgbd-instance-segmentation", model=str(folder)),
        ):
            with pytest.raises(OSError, match="has no processor_config.json"):
                load(tmp_path)
