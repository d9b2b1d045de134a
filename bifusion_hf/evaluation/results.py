"""What becomes of a result: a JSON file, a table, entries of a model card.

A result is a dictionary of the parts that were measured and of how:

- `"class_agnostic"`, `"class_aware"`: from `InstanceAveragePrecision.compute`;
- `"semantic"`: from `SemanticMeanIoU.compute`;
- `"identity"`: from `IdentitySteadiness.compute`, for whole scenes;
- `"groups"`: group of classes -> the same numbers, `"class_agnostic"` and `"class_aware"`, on its instances alone;
- `"protocol"`: plain values, such as the number of frames, the points of a frame, `min_points`, the thresholds.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..io.atomic import write_text


AP_KEYS = ("all_ap", "all_ap_50%", "all_ap_25%", "all_ap_50:95")
_COLUMNS = {"AP": "ap", "AP50": "ap50%", "AP25": "ap25%", "AP50:95": "ap50:95"}
_GROUPS = ("head", "common", "tail")


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers to print, log and compare.

    Returns:
        `all_ap`, `all_ap_50%`, `all_ap_25%` of the network's own task (class-aware where it was measured, else
        class-agnostic); beside class-aware ones `class_agnostic_all_ap`, ...; `mean_iou` where it was measured.

    Raises:
        ValueError: The result has no instance part.
    """
    parts = [part for part in ("class_aware", "class_agnostic") if part in results]
    if not parts:
        raise ValueError(f"results has parts {sorted(results)}; expected 'class_aware' or 'class_agnostic'")
    numbers = {}
    for part in parts:
        prefix = "" if part == parts[0] else f"{part}_"
        numbers.update({prefix + key: results[part][key] for key in AP_KEYS if key in results[part]})
    if "semantic" in results:
        numbers["mean_iou"] = results["semantic"]["mean_iou"]
    return numbers


def format_results(results: Mapping[str, Any], *, per_class: bool = True) -> str:
    """A plain text table of a result and its protocol.

    Args:
        results: The result.
        per_class: Also one line for every class that has instances.
    """
    columns = dict(_COLUMNS)
    parts = [part for part in ("class_agnostic", "class_aware") if part in results]
    if not any("all_ap_50:95" in results[part] for part in parts):
        del columns["AP50:95"]
    lines = ["".join([f"{'':<28}", *(f"{name:>9}" for name in columns), f"{'instances':>11}"])]

    def add(name: str, row: Mapping[str, Any]) -> None:
        cells = [f"{row[key]:>9.3f}" if key in row else f"{'-':>9}" for key in columns.values()]
        lines.append("".join([f"{name:<28}", *cells, f"{row['num_instances']:>11}"]))

    for part in parts:
        totals = dict(zip(columns.values(), (results[part].get(key, math.nan) for key in AP_KEYS), strict=False))
        add(part.replace("_", "-"), {**totals, "num_instances": results[part]["num_instances"]})
    for group in _GROUPS:
        if group in results.get("class_aware", {}):
            add(f"  {group}", results["class_aware"][group])
    if per_class and "class_aware" in results:
        for name, row in results["class_aware"]["classes"].items():
            if row["num_instances"]:
                add(f"    {name}", row)
    if "semantic" in results:
        semantic = results["semantic"]
        groups = [f"{group} {semantic[group]['iou']:.3f}" for group in _GROUPS if group in semantic]
        accuracy = f"accuracy {semantic['overall_accuracy']:.3f}"
        lines.append(", ".join([f"{'semantic':<28} mean IoU {semantic['mean_iou']:.3f}", accuracy, *groups]))
    if "identity" in results:
        identity = results["identity"]
        lines.append(
            f"{'identity':<28} {100 * identity['id_share']:.1f} % of an object's points keep one id, "
            f"{identity['id_switches_per_object']:.2f} switches an object, coverage {identity['coverage']:.3f}"
        )
    if "AP50:95" in columns:
        lines.append("AP50:95 has COCO's ten thresholds and does not compare with ScanNet's AP (nine, up to 0.90).")
    lines += [f"{name}: {value}" for name, value in results.get("protocol", {}).items()]
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """The same value with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_results(results: Mapping[str, Any], path: str | Path) -> None:
    """Writes a result as JSON; NaN (a class without instances) becomes null."""
    write_text(path, json.dumps(without_nan(results), indent=2, allow_nan=False) + "\n")


def load_results(path: str | Path) -> dict[str, Any]:
    """Reads what `save_results` wrote; null becomes NaN again.

    Raises:
        ValueError: The file is not JSON, or not such a result.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(results, dict) or not {"class_aware", "class_agnostic"} & results.keys():
        raise ValueError(f"{path}: no evaluation result; expected an object with class_aware or class_agnostic")

    def with_nan(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: with_nan(item) for key, item in value.items()}
        return math.nan if value is None else value

    return {part: value if part == "protocol" else with_nan(value) for part, value in results.items()}


def model_index_entries(
    results: Mapping[str, Any], *, dataset_name: str, dataset_id: str, dataset_split: str
) -> list[EvalResult]:
    """Entries of a model card's `model-index`, one per number that is not NaN.

    Args:
        results: The result.
        dataset_name: Name for readers.
        dataset_id: Id on the Hub, or a short name of a data set that is not there.
        dataset_split: `"val"`, ...

    Returns:
        Values as fractions (0.315, not 31.5), each with the protocol as `metric_args`.
    """
    protocol = without_nan(results.get("protocol", {}))
    labels = {
        "class_agnostic": "class-agnostic ",
        "class_aware": "class-aware ",
        "semantic": "semantic ",
    }
    names = {**dict(zip(AP_KEYS, _COLUMNS, strict=True)), "mean_iou": "mean IoU"}
    entries = []
    for part, label in labels.items():
        for key, name in names.items():
            value = results.get(part, {}).get(key, math.nan)
            if math.isnan(value):
                continue
            entries.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name="RGB-D 3D instance segmentation"
                    if part != "semantic"
                    else "RGB-D semantic segmentation",
                    dataset_type=dataset_id,
                    dataset_name=dataset_name,
                    dataset_split=dataset_split,
                    metric_type="mean_iou" if part == "semantic" else "average_precision",
                    metric_name=label + name,
                    metric_value=value,
                    metric_args=protocol or None,
                )
            )
    return entries
