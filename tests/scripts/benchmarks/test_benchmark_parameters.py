import json
from pathlib import Path

import pytest
import torch

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.evaluation.results import load_results
from bifusion_hf.presets import PRESETS
from bifusion_hf.training.freezing import freeze, frozen_prefixes
from scripts.benchmarks import parameters, results
from scripts.benchmarks.__main__ import main


ROOT = Path(__file__).parents[3]
BEGIN, END = "<!-- parameters:begin -->", "<!-- parameters:end -->"


@pytest.fixture(scope="module")
def counts():
    return {preset: parameters.count_parameters(preset) for preset in PRESETS}


def test_parts_are_counted_once_and_frozen_ones_do_not_train(counts):
    with torch.device("meta"):
        model = BiFusionForInstanceSegmentation(BiFusionConfig.from_preset("full"))
    freeze(model, frozen_prefixes(model))
    assert counts["full"]["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for values in counts.values():
        assert sum(values[part] for part in parameters.PARTS) == values["all"] >= values["trained"]
    assert counts["sv3d"]["all"] == counts["sv3d"]["trained"] == 41_459_787
    assert counts["simple"]["fusion block"] == 115_738
    assert counts["sv3d"]["fusion block"] == counts["sv3d"]["image tower"] == 0


def test_the_table_goes_between_the_markers(counts, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    output = tmp_path / "new" / "parameters.json"
    main(["parameters", "--update", str(page), "--output", str(output)])
    table = parameters.format_table(counts)
    assert capsys.readouterr().out.strip() == table
    assert page.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
    assert json.loads(output.read_text()) == counts
    assert "| `simple` | 71,557,253 |" in table and "| 286.2 MB |" in table


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, 2 * BEGIN])
def test_a_file_without_markers_is_refused_and_left_alone(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="expected one <!-- parameters:begin -->"):
        parameters.update_file(page, "parameters", "table")
    assert page.read_text() == text


def test_published_numbers_are_those_of_the_code(counts):
    recorded = ROOT / "model_cards" / "benchmarks" / "parameters.json"
    assert json.loads(recorded.read_text()) == counts
    for name in ("README.md", "README.zh-CN.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert BEGIN not in text or parameters.format_table(counts) in text, name


def test_published_results_are_those_of_the_files():
    names = ("sample_val", "fresh_rooms")
    files = [ROOT / "model_cards" / "results" / f"bifusion_tiny_rooms_{name}.json" for name in names]
    assert results.format_table([load_results(path) for path in files]) in (ROOT / "README.md").read_text("utf-8")
