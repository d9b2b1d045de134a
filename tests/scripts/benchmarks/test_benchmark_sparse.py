import json
from pathlib import Path

import pytest

from bifusion_hf.configuration_bifusion import BiFusionPointConfig
from scripts.benchmarks import sparse, sparse_tables, voxel_scenes
from scripts.benchmarks.__main__ import main


ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "model_cards" / "benchmarks" / "sparse.json"


@pytest.fixture
def small(monkeypatch):
    """A small network, and a camera of few pixels."""
    monkeypatch.setattr(
        sparse, "BiFusionPointConfig", lambda: BiFusionPointConfig(stem_channels=8, planes=[8] * 8, blocks=[1] * 8)
    )
    monkeypatch.setattr(voxel_scenes.depth_camera_view, "__defaults__", (120, 160))


def test_measures_and_fills_in_the_tables(small, tmp_path):
    page, output = tmp_path / "page.md", tmp_path / "new" / "sparse.json"
    page.write_text("before\n<!-- sparse:begin -->\n<!-- sparse:end -->\nafter\n")
    sizes = ["--layer_voxels", "300", "--channels", "8", "--backbone_voxels", "400", "500", "--memory_voxels", "0"]
    # Without its instructions a processor takes minutes for a large product in bfloat16.
    sizes += ["--product_size", "64"]
    main(["sparse", *sizes, "--repeats", "1", "--threads", "1", "--device", "cpu", "--output", str(output)])
    result = json.loads(output.read_text())
    assert [row["voxels"] for row in result["backbone"]] == [400, 500] and list(result["growth"]) == ["400", "500"]
    assert result["contenders"][-1] in ("torch", "spconv")
    for name, error in result["backbone"][0]["difference_from_first_by_largest_value"].items():
        # Small batches are normalised by what little they hold, which magnifies roundings.
        assert error["largest"] < (0.5 if "bfloat16" in name else 1e-4)
    # A recorded result gives its tables without measuring.
    main(["sparse", "--result", str(output), "--update", str(page)])
    tables = sparse_tables.format_tables(result)
    assert page.read_text() == f"before\n<!-- sparse:begin -->\n{tables}\n<!-- sparse:end -->\nafter\n"


def test_tables():
    names = ["compiled", "compiled bfloat16", "spconv"]
    times = {
        f"{name}, {kind}": {"median": 4.0 * (i + 1)} for i, name in enumerate(names) for kind in sparse_tables.PASSES
    }
    machine = {"cpu": "a CPU", "device": "cpu", "threads": 2, "torch": "2", "spconv": "spconv 2.3", "date": "today"}
    result = {
        "machine": {**machine, "repeats": 5},
        "contenders": names,
        "layers": [
            {
                "voxels": 20_000,
                "channels": 96,
                "neighbours": 16.25,
                "milliseconds": times,
                "gflop_per_second": {"compiled, forward": 210.4, "torch.mm": 190},
            }
        ],
        "backbone": [],
        "memory_voxels": 50_000,
        "memory_mb": {"compiled, forward": 300.4},
    }
    table = sparse_tables.format_tables(result)
    row = "| 20,000 | 96 | 16.2 | 4.0 / 4.0 | 8.0 / 8.0 | 2.00 / 2.00 | 12 / 12 | 3.00 / 3.00 | 210 | 190 |"
    assert row in table.splitlines()
    assert "at 50,000 voxels: `compiled`, forward 300 MB." in table
    columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(columns) == 1


def test_published_tables_are_those_of_the_result():
    page = (ROOT / "docs" / "sparse.md").read_text(encoding="utf-8")
    if RECORDED.exists():
        assert sparse_tables.format_tables(json.loads(RECORDED.read_text())) in page
