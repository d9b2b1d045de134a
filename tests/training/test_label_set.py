"""Labels of one's own: from a file to a class-aware network."""

import json

import pytest
import torch
import yaml
from frame_factory import make_frame
from real_recipe import small_recipe, write_frames

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.cli import evaluate, predict
from bifusion_hf.cli.train import main as train
from bifusion_hf.data.class_names import CLASSES_FILE, classes_text
from bifusion_hf.data.frames import frame_to_row
from bifusion_hf.io.files import DataFileError
from bifusion_hf.recipe.reading import load_arguments
from bifusion_hf.training.label_set import read_label_set
from bifusion_hf.training.run import build_model, build_processor, build_trainer


LABELS = {"seat": ["chair", "couch"], "table": "table", "rest": [10]}
# The classes of one's own frames; chair, table and bed of the factory are numbered anew.
CLASSES = ["wall", "floor", "mug", "drill", "tape"]


def own_rows(count, start=0):
    rows = []
    for seed in range(start, start + count):
        frame = make_frame(60, 80, seed=seed)
        semantic = frame.semantic.copy()
        for new, old in enumerate((2, 3, 10), start=2):
            semantic[frame.semantic == old] = new
        rows.append(frame_to_row(make_frame(60, 80, seed=seed, semantic=semantic)))
    return rows


def test_a_mapping_of_labels_to_classes(tmp_path):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(LABELS, sort_keys=False))
    for source in (LABELS, str(path)):
        labels = read_label_set(source)
        fields = labels.config_fields()
        assert fields == {"num_labels": 3, "id2label": {0: "seat", 1: "table", 2: "rest"}}
        values = labels.processor_fields(BiFusionConfig.from_preset("tiny", **fields))
        expected = {2: 0, 5: 0, 3: 1, 10: 2}
        assert values["class_to_label"] == [expected.get(index, -1) for index in range(200)]
        assert values["label_names"] == ["seat", "table", "rest"]
    # Any sequence will do.
    assert read_label_set({"seat": ("chair", 5), "table": 3}).labels == {"seat": ["chair", 5], "table": [3]}


def test_a_list_of_the_classes_of_the_data(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(CLASSES))
    labels = read_label_set(str(path))
    config = BiFusionConfig.from_preset("tiny", **labels.config_fields())
    assert config.semantic_id2label == dict(enumerate(CLASSES)) and config.num_semantic_labels == 5
    assert config.id2label == {0: "mug", 1: "drill", 2: "tape"}
    assert labels.processor_fields(config)["class_to_label"] == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seat": ["chair"]}, "has 1 labels; expected at least two"),
        ({"seat": [], "table": "table"}, "'seat' has \\[\\]"),
        ({" ": "chair", "table": "table"}, "the label ' '"),
        ({"seat": [True], "table": "table"}, "'seat' has \\[True\\]"),
        ({"seat": ["chair", 1.5], "table": "table"}, "'seat' has \\['chair', 1.5\\]; expected names or numbers"),
        (["chair", "table"], "has the classes \\['chair', 'table'\\]"),
        (["wall", "floor"], "has the classes"),
        (["wall", "floor", "mug", "mug"], "expected different ones"),
        ("chair", "has no labels"),
        ([1, 2], "has no labels"),
        (["wall", "floor", "mug", 3], "has no labels"),
    ],
)
def test_malformed_files_are_named(tmp_path, content, message):
    path = tmp_path / "labels.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=f"labels.yaml.*{message}"):
        read_label_set(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataFileError, match="labels.json"):
        read_label_set(str(tmp_path / "labels.json"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            {"seat": "chaise", "table": "table"},
            r"'seat' has 'chaise', which is no class with instances; expected names \(chair, table, door, couch, "
            r"cabinet, \.\.\.\) or numbers from 2 to 199",
        ),
        ({"seat": "wall", "table": "table"}, "'seat' has 'wall'"),
        ({"seat": 200, "table": "table"}, "'seat' has 200"),
        ({"seat": "chair", "thing": ["table", "chair"]}, "class 'chair' is of 'seat' and of 'thing'"),
    ],
)
def test_classes_that_do_not_fit_are_named(labels, message):
    found = read_label_set(labels)
    with pytest.raises(ValueError, match=message):
        found.processor_fields(BiFusionConfig.from_preset("tiny", **found.config_fields()))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A class-agnostic checkpoint with the classes of ScanNet200."""
    folder = tmp_path_factory.mktemp("pretrained")
    arguments = small_recipe(folder).model
    model = build_model(arguments, 3)
    model.save_pretrained(folder / "checkpoint")
    build_processor(arguments, model.config).save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def test_only_the_heads_of_the_labels_start_new(tmp_path, pretrained):
    arguments = small_recipe(tmp_path).model
    arguments.config, arguments.processor, arguments.pretrained = {}, {}, str(pretrained)
    arguments.labels = LABELS
    old, new = BiFusionForInstanceSegmentation.from_pretrained(pretrained).state_dict(), build_model(arguments, 0)
    for name, value in new.state_dict().items():
        same = value.shape == old[name].shape and torch.equal(value, old[name])
        assert same != name.startswith("decoder.class_head.out."), name
    processor = build_processor(arguments, new.config)
    assert processor.label_names == list(LABELS) and processor.num_points == 600
    arguments.config = {"decoder_size": 32}
    with pytest.raises(ValueError, match="have other shapes than the recipe's"):
        build_model(arguments, 0)


@pytest.mark.parametrize("form", ["mapping", "classes"])
def test_from_a_folder_of_labelled_frames_to_named_instances(tmp_path, pretrained, form, capsys):
    write_frames(tmp_path / "mine", "train", own_rows(4) if form == "classes" else [
        frame_to_row(make_frame(60, 80, seed=seed)) for seed in range(4)
    ])  # fmt: skip
    write_frames(tmp_path / "mine", "val", own_rows(2, 4) if form == "classes" else [
        frame_to_row(make_frame(60, 80, seed=seed)) for seed in range(4, 6)
    ])  # fmt: skip
    content = CLASSES if form == "classes" else {"seat": ["chair"], "table": ["table"], "bed": 10}
    names = CLASSES[2:] if form == "classes" else list(content)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    if form == "classes":
        # The numbers of the class images are those of the data set's own list.
        (tmp_path / "mine" / CLASSES_FILE).write_text(classes_text(CLASSES))
    recipe = {
        "model": {"pretrained": str(pretrained), "labels": str(tmp_path / "labels.json")},
        "data": {"train": str(tmp_path / "mine"), "val": str(tmp_path / "mine"), "num_workers": 0},
        "training": {"batch_size": 2, "max_updates": 2, "freeze": ["model.encoder.point_encoder"]},
        "evaluation": {"num_workers": 0},
        "logging": {"progress_bar": False},
        "output_dir": str(tmp_path / "run"),
    }
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(recipe))
    train([str(tmp_path / "finetune.yaml")])
    best = tmp_path / "run" / "best"
    model = BiFusionForInstanceSegmentation.from_pretrained(best)
    assert model.config.id2label == dict(enumerate(names)) and model.config.num_labels == 3
    assert BiFusionProcessor.from_pretrained(best).label_names == names
    # The frozen part is that of the start.
    old = BiFusionForInstanceSegmentation.from_pretrained(pretrained).model.encoder.point_encoder.state_dict()
    frozen = model.model.encoder.point_encoder.state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in old.items())

    evaluate.main([str(best), "--data", str(tmp_path / "mine"), "--cpu", "--output", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    classes = results["class_aware"]["classes"]
    assert {name: row["num_instances"] for name, row in classes.items()} == dict.fromkeys(names, 2)

    predict.main(["--checkpoint", str(best), "--data", str(tmp_path / "mine"), "--threshold", "0", "--device", "cpu",
                  "--output", str(tmp_path / "out")])  # fmt: skip
    capsys.readouterr()
    content = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert {segment["name"] for segment in content["segments"]} <= set(names)

    arguments = load_arguments(tmp_path / "finetune.yaml")
    arguments.resume_from_checkpoint = "latest"
    # The run goes on as it began.
    assert build_trainer(arguments).network.config.id2label == dict(enumerate(names))
