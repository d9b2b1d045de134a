"""The card (README.md) of a prepared data set."""

from collections.abc import Mapping
from typing import Any


_TEMPLATE = """---
license: other
license_name: scannet-terms-of-use
pretty_name: ScanNet200 RGB-D frames
task_categories:
- image-segmentation
tags:
- rgb-d
- 3d
- instance-segmentation
- scannet
configs:
- config_name: default
  data_files:
{data_files}
---

# ScanNet200 RGB-D frames

Prepared with `bifusion_hf` from ScanNet (Dai et al., CVPR 2017), with the classes of ScanNet200 (Rozenberszki et al.,
ECCV 2022). **The terms of use of ScanNet forbid passing its data on: keep this data set, or a repository of it,
private.**

| split | scans | frames | skipped | failed scans |
| --- | --- | --- | --- | --- |
{table}

`report.json` has the skipped frames and failed scans with the reason.

```python
from datasets import load_dataset

frames = load_dataset("path/to/this/folder", split="{split}")  # streaming=True works as well
```

`bifusion_hf.data.frames.load_frames` and `frame_from_row` give checked frames of it.

## Columns

| column | content |
| --- | --- |
| `frame_id` | `<scan>_<number of the frame in its stream>` |
| `image` | RGB, on the pixel grid of the depth image |
| `depth` | 16-bit PNG, `depth_scale` units per metre along the optical axis, 0 = no measurement |
| `intrinsics` | 3x3 of the depth image of that scan, pixel centres at integers |
| `camera_to_world` | 4x4, metres, z up |
| `instance` | 16-bit PNG: id of the annotated object plus one, 0 = none; walls and floors have ids too |
| `semantic` | 16-bit PNG: class index plus one, 0 = none; 0 wall, 1 floor, 2 chair, ... (`bifusion_hf.labels`) |
| `superpoints` | 16-bit PNG: superpoint plus one, 0 = none; where empty they are made when the frame is read |

Label columns are empty for scans without annotation.

## Settings

{settings}
"""


def dataset_card(report: Mapping[str, Any]) -> str:
    """The card of a data set.

    Args:
        report: Of `prepare_scannet200`.
    """
    parts = report["splits"]
    data_files = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in parts)
    table = "\n".join(
        f"| {split} | {part['scans']} | {part['frames']} | {len(part['skipped'])} | {len(part['failed'])} |"
        for split, part in parts.items()
    )
    settings = "\n".join(f"- {name}: {value}" for name, value in report["settings"].items())
    return _TEMPLATE.format(data_files=data_files, table=table, split=next(iter(parts)), settings=settings)
