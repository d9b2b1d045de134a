"""The tables of docs/sparse.md, from the result of `benchmark.py sparse`."""

from collections.abc import Mapping, Sequence
from typing import Any


PASSES = ("forward", "forward + backward")


def format_tables(result: Mapping[str, Any]) -> str:
    """Machine, layers, backbone and memory as Markdown.

    Args:
        result: What `sparse.measure` gives, or its JSON.
    """
    machine, names = result["machine"], result["contenders"]
    place = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    lines = [
        f"{place}, {machine['threads']} threads, torch {machine['torch']}, {machine['spconv'] or 'no spconv'}, "
        f"{machine['date']}. Milliseconds, forward / forward + backward, medians of {machine['repeats']} turns or, "
        f"beyond 50,000 voxels, about half as many. Ratios are to `{names[0]}`."
    ]
    if result["layers"]:
        lines += ["", "One 3x3x3 layer, its maps made beforehand:", "", *_layers(result["layers"], names)]
    if result["backbone"]:
        lines += ["", "The whole Res16UNet34C, maps included:", "", *_backbone(result["backbone"], names)]
        errors = result["backbone"][-1]["difference_from_first_by_largest_value"]
        differences = "; ".join(
            f"`{name}` {error['largest']:.0e}, rms {error['rms']:.0e}" for name, error in errors.items()
        )
        voxels = result["backbone"][-1]["voxels"]
        lines += ["", f"Differences from `{names[0]}` at {voxels:,} voxels, by the largest value: {differences}."]
    if "memory_mb" in result:
        memory = "; ".join(
            f"`{case.replace(', ', '`, ', 1)} {value:.0f} MB" for case, value in result["memory_mb"].items()
        )
        lines += ["", f"Peak memory above the loaded network at {result['memory_voxels']:,} voxels: {memory}."]
    return "\n".join(lines)


def _layers(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    heads = ["voxels", "channels", "neighbours of 27", *_heads(names), "GFLOP/s forward", "`torch.mm` GFLOP/s"]
    lines = _head(heads)
    for row in rows:
        rates = row["gflop_per_second"]
        cells = [f"{row['voxels']:,}", row["channels"], f"{row['neighbours']:.1f}", *_cells(row, names)]
        cells += [f"{rates[f'{names[0]}, forward']:.0f}", f"{rates['torch.mm']:.0f}"]
        lines.append(_line(cells))
    return lines


def _backbone(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    lines = _head(["voxels", *_heads(names), "maps alone", "forward, µs a voxel"])
    for row in rows:
        times = row["milliseconds"]
        growth = 1e3 * times[f"{names[0]}, forward"]["median"] / row["voxels"]
        cells = [f"{row['voxels']:,}", *_cells(row, names), f"{times['maps alone']['median']:.0f}", f"{growth:.1f}"]
        lines.append(_line(cells))
    return lines


def _heads(names: Sequence[str]) -> list[str]:
    return [f"`{names[0]}`", *(head for name in names[1:] for head in (f"`{name}`", "ratio"))]


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Times of each contender and, of all but the first, how many times the first's they are."""
    times = {name: [row["milliseconds"][f"{name}, {kind}"]["median"] for kind in PASSES] for name in names}
    cells = []
    for name in names:
        cells.append(" / ".join(f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in times[name]))
        if name != names[0]:
            cells.append(" / ".join(f"{a / b:.2f}" for a, b in zip(times[name], times[names[0]], strict=True)))
    return cells


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---" * len(cells) + "|"]


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
