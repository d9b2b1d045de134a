"""What may be compared with what."""

import json
from pathlib import Path

import pytest

from bifusion_hf import BiFusionConfig
from bifusion_hf.recipe.reading import load_arguments
from scripts.experiments.cells import (
    CLASS_GROUPS,
    RoomsData,
    changed_keys,
    check_comparable,
    content_of,
    load_cells,
    recipe_file,
)


RESULTS = Path(__file__).parents[3] / "model_cards" / "rooms"
CELLS = ["rooms_none", "rooms_lite_gate", "rooms_enhanced_gate", "rooms_residual"]
CELLS += ["rooms_residual_dinov2", "rooms_lite_gate_dinov2"]
CELLS += ["rooms_lite_gate_resnet", "rooms_enhanced_gate_resnet", "rooms_residual_resnet"]


def test_all_cells_share_data_seed_and_budget_and_may_be_compared(tmp_path, rooms):
    cells = load_cells(CELLS, [0, 1], RoomsData.read(rooms), tmp_path / "work", ["--training.epochs", "3"])
    assert [cell.name for cell in cells] == [f"{recipe}-s{seed}" for seed in (0, 1) for recipe in CELLS]
    for cell in cells:
        arguments = cell.arguments
        assert (arguments.data.train, arguments.data.val) == (str(rooms), str(rooms))
        assert (arguments.training.epochs, arguments.resume_from_checkpoint) == (3, "auto")
        assert cell.folder == tmp_path / "work" / cell.name
    assert [cell.arguments.seed for cell in cells] == [0] * len(CELLS) + [1] * len(CELLS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optimizer: {learning_rate: 0.1}", "optimizer.learning_rate"),
        ("model: {config: {voxel_size: 0.02}}", "model.config.voxel_size"),
        ("model: {processor: {num_superpoints: 50}}", "model.processor.num_superpoints"),
        ("model: {config: {point_config: {stem_channels: 8}}}", "model.config.point_config.stem_channels"),
        ("data: {augment: false}", "data.augment"),
    ],
)
def test_cells_that_differ_in_more_than_the_image_branch_are_refused(tmp_path, rooms, change, named):
    (tmp_path / "other.yaml").write_text(f"extends: {recipe_file('rooms_residual')}\n{change}\n")
    with pytest.raises(ValueError, match=f"rooms_none-s0 and other-s0 differ in {named}; "):
        load_cells(["rooms_none", str(tmp_path / "other.yaml")], [0], RoomsData.read(rooms), tmp_path)


def test_where_a_run_works_is_no_part_of_what_it_is(tmp_path):
    (tmp_path / "tower").mkdir()
    words = ["--data.train", "/a", "--output_dir", "/b", "--data.num_workers", "7", "--checkpoints.keep", "9"]
    here = content_of(load_arguments(recipe_file("rooms_none"), [*words, "--init.vision", str(tmp_path / "tower")]))
    there = content_of(load_arguments(recipe_file("rooms_none"), ["--init.vision", "tower"]))
    assert here == there and str(tmp_path) not in json.dumps(here)
    # A later version knows more keys; what it adds has its default in an earlier result.
    before = {key: value for key, value in there.items() if key != "training.accumulation"}
    assert changed_keys(before, there) == []
    assert changed_keys(before, {**there, "training.accumulation": 2}) == ["training.accumulation"]


def test_stored_results_with_the_names_of_release_0_1_are_compared_with_those_of_today():
    stored = json.loads((RESULTS / "rooms_none-s0.json").read_text(encoding="utf-8"))["arguments"]
    assert {"model.config.image_size", "model.config.clip_loss_weight"} <= stored.keys()
    now = content_of(load_arguments(recipe_file("rooms_none"), ["--training.epochs", str(stored["training.epochs"])]))
    assert "model.processor.image_size" in now and changed_keys(stored, now) == []
    with_image = json.loads((RESULTS / "rooms_residual_resnet-s0.json").read_text(encoding="utf-8"))["arguments"]
    check_comparable({"points": stored, "image": with_image})


def test_every_class_is_in_one_group():
    names = [name for members in CLASS_GROUPS.values() for name in members]
    assert len(names) == len(set(names)) == 198
    assert {"crate", "towel", "poster"} < set(CLASS_GROUPS["photometric"]) and "chair" in CLASS_GROUPS[
        "shape_distinct"
    ]


def test_a_folder_that_is_no_complete_data_set_is_refused(tmp_path, rooms):
    with pytest.raises(ValueError, match=r"has no rooms.json"):
        RoomsData.read(tmp_path)
    content = json.loads((rooms / "rooms.json").read_text())
    for change, message in (
        ({"sha256": {"train": "1"}}, "no hash of val"),
        ({"photometric": {}}, "render with --photometric"),
    ):
        (rooms / "rooms.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            RoomsData.read(rooms)


def test_the_cells_of_the_rooms_experiment_differ_in_the_network_alone():
    cells = [
        load_arguments(recipe_file(f"rooms_{name}")) for name in ("none", "lite_gate", "enhanced_gate", "residual")
    ]
    rest = [{**cell.to_dict(), "model": None, "output_dir": None} for cell in cells]
    assert all(other == rest[0] for other in rest)
    configs = [BiFusionConfig.from_preset(cell.model.preset, **cell.model.config) for cell in cells]
    assert [config.fusion_type for config in configs] == ["none", "lite_gate", "enhanced_gate", "residual"]
    for name in ("voxel_size", "num_labels", "decoder_size", "decoder_layers", "point_config"):
        assert len({str(getattr(config, name)) for config in configs}) == 1
    assert configs[0].voxel_size == 0.04 and configs[0].id2label[0] == "chair" and len(configs[0].id2label) == 198
