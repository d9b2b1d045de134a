import json
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard
from release_files import EVALUATION_DATA, RESULTS, TRAINING_DATA, recipe

from bifusion_hf import BiFusionConfig
from bifusion_hf.assets import SAMPLE_FRAMES
from bifusion_hf.hub.model_card import dataset_card, describe_data, find_template, model_card, read_front_matter


def card_of(tmp_path, **overrides):
    arguments = {
        "repo_id": "org/tiny-rooms",
        "config": BiFusionConfig.from_preset("tiny"),
        "num_parameters": 2_230_000,
        "num_points": 8000,
        "results": RESULTS,
        "recipe": recipe(tmp_path),
        "training_data": TRAINING_DATA,
        "evaluation_data": EVALUATION_DATA,
        "license": "apache-2.0",
    }
    return model_card(**{**arguments, **overrides})


def test_the_card_has_every_part(tmp_path):
    text = card_of(tmp_path, tag="v1.2", base_model="org/base")
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "What it is",
        "How to use it",
        "Intended use",
        "Limits",
        "Training data",
        "Training",
        "Results",
        "Environment",
        "Licence",
        "Citation",
    ]
    assert "$" not in text and "None" not in text.split("---")[2].replace("limit: None", "")
    assert "![Instances" in text and "(picture.png)" in text
    assert 'revision="v1.2"' in text and "2.23 M parameters" in text
    assert "Rooms ([org/rooms](https://huggingface.co/datasets/org/rooms)), licence: cc0-1.0" in text
    assert "bifusion-evaluate org/tiny-rooms --data Kitchens --split val" in text
    assert "\n- torch 2" in text and "\n- transformers 5" in text and "\n- bifusion_hf 0" in text
    assert "preset `tiny`" in text


def test_the_block_at_the_top_is_what_the_hub_reads(tmp_path):
    data = ModelCard(card_of(tmp_path, base_model="org/base")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "image-segmentation")
    assert data.datasets == ["org/rooms"] and data.base_model == "org/base"
    assert data.model_name == "tiny-rooms"
    found = {entry.metric_name: entry for entry in data.eval_results}
    assert {name: entry.metric_value for name, entry in found.items()} == {
        "class-agnostic AP": 0.315,
        "class-agnostic AP50": 0.52,
        "class-agnostic AP25": 0.71,
    }
    entry = found["class-agnostic AP"]
    assert (entry.dataset_name, entry.dataset_type, entry.dataset_split) == ("Kitchens", "Kitchens", "val")
    assert entry.metric_args["min_points"] == 4.5


def test_the_card_follows_the_model(tmp_path):
    points_alone = BiFusionConfig.from_preset("sv3d", num_labels=198)
    text = card_of(tmp_path, config=points_alone)
    assert "198 classes of objects" in text and "there is no image branch" in text and "image tower" not in text
    # Class-agnostic numbers of a model that has classes.
    assert "--class_agnostic" in text and "id2label" in text
    text = card_of(tmp_path)
    assert "--class_agnostic" not in text and "does not name them" in text and "image tower" in text


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "card.md"
    path.write_text("---\n$metadata\n---\n# $model_name costs $$5\n")
    assert card_of(tmp_path, template=path).endswith("# tiny-rooms costs $5\n")
    path.write_text("---\n$metadata\n---\n# $nonsense\n")
    with pytest.raises(ValueError, match="placeholder 'nonsense'"):
        card_of(tmp_path, template=path)


def test_templates_lie_in_model_cards(tmp_path, monkeypatch):
    for name in ("model_card_template.md", "dataset_card_template.md"):
        assert find_template(name) == Path(__file__).parents[2] / "model_cards" / name
        # `pip install --target`, and a prefix.
        for folder in ("target", "prefix/lib/python3/site-packages"):
            root = tmp_path / folder.partition("/")[0]
            share = root / "share" / "bifusion_hf" / "model_cards"
            share.mkdir(parents=True, exist_ok=True)
            (share / name).touch()
            place = str(tmp_path / folder / "bifusion_hf" / "hub" / "model_card.py")
            with monkeypatch.context() as moved:
                moved.setitem(find_template.__globals__, "__file__", place)
                assert find_template(name) == share / name
    with pytest.raises(FileNotFoundError, match="--template"):
        find_template("none.md")


def test_data_is_described_by_its_card_or_by_hand(tmp_path):
    sample = describe_data("sample")
    assert (sample.reference, sample.license) == ("sample", "cc0-1.0") and "Rooms" in sample.name
    own = describe_data(SAMPLE_FRAMES, hub_id="org/rooms")
    assert (own.name, own.reference) == ("Rooms", "org/rooms")
    with pytest.raises(ValueError, match="name and licence"):
        describe_data(tmp_path)
    with pytest.raises(ValueError, match="its licence"):
        describe_data("org/elsewhere", name="Elsewhere")
    (tmp_path / "README.md").write_text("---\npretty_name: Mine\nlicense: other\nlicense_name: house-rules\n---\n")
    assert describe_data(tmp_path).license == "house-rules"
    assert describe_data(tmp_path, license="mit").license == "mit"
    mixed = describe_data({"sample": 1.0, str(tmp_path): 2.0})
    assert mixed.name == f"{sample.name} and {describe_data(tmp_path).name}"
    assert mixed.license == f"{sample.license} and house-rules"


@pytest.mark.parametrize(
    ("text", "expected"), [("# No block", {}), ("---\na: 1\n---\n", {"a": 1}), ("---\n- 1\n---\n", {}), ("---\n", {})]
)
def test_front_matter(text, expected, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert read_front_matter(tmp_path / "README.md") == expected


def test_broken_front_matter_is_named(tmp_path):
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match=r"README\.md.*not YAML"):
        read_front_matter(tmp_path / "README.md")


def test_the_card_of_a_data_set_loads_its_splits(tmp_path):
    text = dataset_card(
        repo_id="org/mine",
        name="Mine",
        license="cc-by-4.0",
        origin="My kitchen.",
        splits={"train": (64, 2), "val": (32, 1)},
    )
    data = DatasetCard(text).data
    assert data.license == "cc-by-4.0" and data.pretty_name == "Mine"
    files = [(file["split"], file["path"]) for file in data.to_dict()["configs"][0]["data_files"]]
    assert files == [("train", "data/train-*.parquet"), ("val", "data/val-*.parquet")]
    assert "| train | 64 | 2 |" in text and 'load_frames("org/mine", "train")' in text and "$" not in text
    json.dumps(data.to_dict())
