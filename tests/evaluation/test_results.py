import json
import math
import re

import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCardData

from bifusion_hf.evaluation import (
    InstanceAveragePrecision,
    SemanticMeanIoU,
    format_results,
    headline,
    load_results,
    model_index_entries,
    save_results,
)
from bifusion_hf.labels import INSTANCE_CLASS_NAMES


@pytest.fixture
def results():
    ids = np.repeat([-1, 0, 1], 200)
    masks = np.array([ids == 0, (ids == 1) & (np.arange(600) % 20 > 7)])
    metrics = {
        "class_agnostic": InstanceAveragePrecision(None, include_95=True),
        "class_aware": InstanceAveragePrecision(INSTANCE_CLASS_NAMES, include_95=True),
    }
    for metric in metrics.values():
        metric.update(masks, [0.9, 0.8], [0, 197], ids, [0, 197])
    # An instance is missed and one is covered by half, so that no two numbers are the same.
    metrics["class_agnostic"].update((ids == 0) & (np.arange(600) % 2 == 0)[None], [0.7], None, ids, None)
    semantic = SemanticMeanIoU(["floor", "chair"])
    semantic.update([0, 1, 1], [0, 1, 0])
    parts = {name: metric.compute() for name, metric in metrics.items()}
    return {**parts, "semantic": semantic.compute(), "protocol": {"limit": None, "thresholds": [0.5, 0.25]}}


def test_headline_is_the_networks_own_task(results):
    numbers = headline(results)
    assert numbers["all_ap"] == results["class_aware"]["all_ap"]
    assert numbers["class_agnostic_all_ap_50%"] == results["class_agnostic"]["all_ap_50%"]
    assert numbers["mean_iou"] == 0.5
    del results["class_aware"]
    assert headline(results)["all_ap"] == results["class_agnostic"]["all_ap"]
    with pytest.raises(ValueError, match=r"results has parts \['protocol'\]"):
        headline({"protocol": {}})


def test_json_round_trip_keeps_nan(results, tmp_path):
    path = tmp_path / "new" / "results.json"
    save_results(results, path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    stored = json.loads(path.read_text(), parse_constant=refuse)
    assert stored["class_aware"]["classes"]["table"]["ap"] is None
    again = load_results(path)
    assert math.isnan(again["class_aware"]["classes"]["table"]["ap"])
    assert again["class_aware"]["all_ap"] == results["class_aware"]["all_ap"]
    assert again["protocol"] == results["protocol"], "what has no value there is not NaN"


@pytest.mark.parametrize("text", ["{", "[]", '{"protocol": {}}', "\xff"])
def test_other_files_are_refused_by_name(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="results.json"):
        load_results(path)


def test_table(results):
    lines = format_results(results).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP25", "AP50:95", "instances"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    # Numbers stand under their names.
    ends = [[word.end() for word in re.finditer(r"\S+", line)] for line in lines[:2]]
    assert ends[0] == ends[1][1:]
    assert rows["class-agnostic"] == ["0.306", "0.500", "0.750", "0.300", "4"]
    assert rows["class-aware"] == ["0.611", "1.000", "1.000", "0.600", "2"]
    assert rows["head"] == ["1.000", "1.000", "1.000", "1.000", "1"]
    assert rows["common"] == ["0.222", "1.000", "1.000", "0.200", "1"]
    assert rows["tail"] == ["nan", "nan", "nan", "nan", "0"]
    assert rows["mattress"][-1] == "1"
    # Classes without instances have no line.
    assert "table" not in rows
    assert "does not compare with ScanNet's AP" in "\n".join(lines)
    assert lines[-1] == "thresholds: [0.5, 0.25]"
    assert "mattress" not in format_results(results, per_class=False)
    assert "semantic                     mean IoU 0.500, accuracy 0.667, head 0.500, common nan, tail nan" in lines


def test_groups_and_classes_have_each_number_under_its_name():
    row = {"ap": 0.1, "ap50%": 0.2, "ap25%": 0.3, "num_instances": 7}
    part = {
        "all_ap": 0.4,
        "all_ap_50%": 0.5,
        "all_ap_25%": 0.6,
        "num_instances": 8,
        "head": row,
        "classes": {"bed": row},
    }
    lines = [line.split() for line in format_results({"class_aware": part}).splitlines()]
    assert lines[0] == ["AP", "AP50", "AP25", "instances"] and lines[1][1:] == ["0.400", "0.500", "0.600", "8"]
    assert [line for line in lines[2:] if line[:1] in (["head"], ["bed"])] == [
        [name, "0.100", "0.200", "0.300", "7"] for name in ("head", "bed")
    ]


def test_table_without_the_option():
    text = format_results({"class_agnostic": InstanceAveragePrecision(None).compute()})
    assert "AP50:95" not in text
    mixed = {"class_agnostic": InstanceAveragePrecision(None).compute()}
    mixed["class_aware"] = InstanceAveragePrecision(["a"], include_95=True).compute()
    assert format_results(mixed).splitlines()[0].split() == ["AP", "AP50", "AP25", "AP50:95", "instances"]
    assert text.splitlines()[1].split() == ["class-agnostic", "nan", "nan", "nan", "0"]


def test_model_index_survives_a_model_card(results):
    entries = model_index_entries(results, dataset_name="Rooms", dataset_id="rooms", dataset_split="val")
    assert all(isinstance(entry, EvalResult) for entry in entries)
    values = {entry.metric_name: entry.metric_value for entry in entries}
    assert values["class-aware AP50"] == results["class_aware"]["all_ap_50%"]
    assert values["class-agnostic AP50:95"] == results["class_agnostic"]["all_ap_50:95"]
    assert values["semantic mean IoU"] == 0.5
    card = ModelCardData(model_name="m", eval_results=entries).to_dict()
    metrics = [metric for result in card["model-index"][0]["results"] for metric in result["metrics"]]
    assert len(metrics) == 9
    for result in card["model-index"][0]["results"]:
        assert result["dataset"] == {"name": "Rooms", "type": "rooms", "split": "val"}
    for entry in entries:
        part, _, column = entry.metric_name.partition(" ")
        key = {"mean IoU": "mean_iou", "AP": "all_ap", "AP50": "all_ap_50%", "AP25": "all_ap_25%"}
        assert entry.metric_value == results[part.replace("-", "_")][key.get(column, "all_ap_50:95")]
        kinds = entry.task_name, entry.metric_type
        if part == "semantic":
            assert kinds == ("RGB-D semantic segmentation", "mean_iou")
        else:
            assert kinds == ("RGB-D 3D instance segmentation", "average_precision")
        assert entry.metric_args == results["protocol"]
    results["class_agnostic"]["all_ap"] = math.nan
    names = [
        entry.metric_name
        for entry in model_index_entries(results, dataset_name="Rooms", dataset_id="rooms", dataset_split="val")
    ]
    assert "class-agnostic AP" not in names
    del results["protocol"]
    options = {"dataset_name": "Rooms", "dataset_id": "rooms", "dataset_split": "val"}
    assert {entry.metric_args for entry in model_index_entries(results, **options)} == {None}
