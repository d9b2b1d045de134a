"""bifusion-convert-sv3d: a checkpoint of the 3D baseline as a folder for `from_pretrained`."""

import argparse
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .entry import command
from .parser import CommandParser, one_of


if TYPE_CHECKING:
    import torch

    from ..configuration_bifusion import BiFusionConfig
    from ..weights.report import WeightLoadReport

EXAMPLES = """examples:
  bifusion-convert-sv3d ESAM-E_CA_online_epoch_128.pth checkpoints/esam-e
  bifusion-convert-sv3d org/repo:sv3d.pth checkpoints/sv3d --revision 1fec34a --push_to_hub me/sv3d
  bifusion-convert-sv3d mask3d.ckpt checkpoints/backbone --allow_partial

SOURCE: single-view or online ESAM checkpoints hold a whole network. Those of OneFormer3D and Mask3D hold its U-Net
alone: with --allow_partial the rest of the folder is a fixed random start for training.
"""
REPORT = "sv3d_report.json"
# Seed of what a partial checkpoint does not hold.
SEED = 0

_ESAM_LICENSE = (
    "the ESAM repository is under MIT, and much of it derives from OneFormer3D, which is under CC BY-NC 4.0 (no "
    "commercial use)"
)
# Whose names stand before the U-Net's -> what is known of the licence.
LICENSES = {
    "bi_encoder.backbone3d.": "a checkpoint of the original BiFusion; the licence of its weights is not known here",
    "model.backbone.": (
        "names as Mask3D's; what Mask3D's authors and whoever trained these weights grant is not known here"
    ),
    "backbone.": (
        "a U-Net with the names that ESAM, OneFormer3D (CC BY-NC 4.0) and others give it; which of them trained these "
        "weights is not known here"
    ),
}

_CARD = """---
{metadata}
---

# {title}

A converted checkpoint of the 3D baseline of `bifusion_hf` (the single-view network of ESAM): a sparse-convolution
U-Net on {voxel:g} cm voxels of {points} coloured points, superpoint pooling, and a decoder with a query for each
superpoint. It sees the coloured points alone; there is no image branch. The weights are those of the source, renamed;
nothing was trained.

{labels}
{extent}

```python
from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor

model = BiFusionForInstanceSegmentation.from_pretrained("{place}")
processor = BiFusionProcessor.from_pretrained("{place}")
```

## Provenance

| | |
| --- | --- |
| source | `{source}` |
| file | `{file}` |
| revision | {revision} |
| SHA-256 of the file | `{sha256}` |
| converted with | bifusion_hf {version} |

## Licence

Converting grants no rights: the licence of the source goes with the weights. What is known: {license}. ScanNet, which
these networks are usually trained on, has terms of use of its own (non-commercial research). **Check both at the place
where you got the file before you use or pass on the weights.**

## What was loaded

```
{table}
```

`{report}` lists every tensor.
"""


@dataclass(frozen=True)
class Provenance:
    """Where the weights come from, without paths of this machine.

    Args:
        source: What the user named: `"org/repo[:file]"`, or a file's name.
        file: Name of the file.
        revision: Commit of the repository; None for a local file.
        sha256: Of the file, in hexadecimal digits.
        license: What is known of it.
    """

    source: str
    file: str
    revision: str | None
    sha256: str
    license: str


@command("bifusion-convert-sv3d")
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Raises:
        SystemExit: With a message where the source cannot be converted or pushed.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    one_of(parser, arguments, "dest", ["output"], needed=True)

    from ..hub.release import ReleaseError, check_repo_id, publish

    if arguments.push_to_hub is not None:
        check_repo_id(arguments.push_to_hub)
    report = convert(arguments)
    print(f"{report}\nwritten: {arguments.dest}")
    if arguments.push_to_hub is None:
        return
    try:
        published = publish(arguments.dest, arguments.push_to_hub, private=not arguments.public)
    except (ValueError, ReleaseError) as error:
        raise SystemExit(
            f"{parser.prog}: error: {error}\nThe conversion is complete in {arguments.dest}; upload it with: "
            f"hf upload {arguments.push_to_hub} {arguments.dest}"
        ) from error
    print(f'{published.url}: revision="{published.commit}"')


def build_parser() -> argparse.ArgumentParser:
    """The parser of `main`."""
    parser = CommandParser(
        prog="bifusion-convert-sv3d",
        description="Converts a checkpoint of the 3D baseline to a folder for from_pretrained: safetensors, "
        "configuration, processor, report, and a card with provenance and licence.",
        epilog=EXAMPLES,
    )
    parser.add_argument("source", metavar="SOURCE", help=".pth or .safetensors file, org/repo or org/repo:file")
    parser.add_argument("dest", metavar="DEST", nargs="?", type=Path, help="folder to write; must not exist")
    parser.add_argument("--output", type=Path, metavar="DEST", help="the same")
    parser.add_argument("--revision", help="branch, tag or commit of the repository; the card records the commit")
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="convert a checkpoint that does not hold the whole network; the rest gets a fixed random start",
    )
    unseen = parser.add_argument_group("what the tensors do not show", "the original's values by default")
    unseen.add_argument("--voxel_size", type=float, default=0.02, metavar="METRES", help="default: 0.02")
    unseen.add_argument("--num_points", type=int, default=20000, metavar="N", help="points a frame, default: 20000")
    unseen.add_argument("--decoder_attention_heads", type=int, default=8, metavar="N", help="default: 8")
    push = parser.add_argument_group("upload")
    push.add_argument("--push_to_hub", metavar="REPO", help="owner/name on the Hub")
    push.add_argument("--public", action="store_true", help="by default the repository is private")
    push.add_argument("--license", default="other", help="for the card's header, as the Hub abbreviates it")
    return parser


def convert(arguments: argparse.Namespace) -> "WeightLoadReport":
    """Writes the folder, all of it or nothing.

    Args:
        arguments: Of `build_parser`.

    Returns:
        What was loaded.

    Raises:
        ValueError: The folder exists; the source is no baseline checkpoint, or only part of one without
            `allow_partial`.
        OSError: The source cannot be found, reached or read, or the folder cannot be written.
    """
    if arguments.dest.exists():
        raise ValueError(f"{arguments.dest} exists; nothing is overwritten, remove it or name another folder")

    from transformers import set_seed
    from transformers.utils import logging

    from ..io.atomic import new_folder
    from ..io.checkpoint_files import read_state_dict, resolve_file
    from ..modeling_bifusion import BiFusionForInstanceSegmentation
    from ..processing_bifusion import BiFusionProcessor
    from ..weights.sv3d import (
        FILE_NAMES,
        OWN_LAYOUT,
        find_backbone_prefix,
        load_sv3d_weights,
    )

    logging.disable_progress_bar()
    path = resolve_file(arguments.source, FILE_NAMES, arguments.revision)
    state = read_state_dict(path)
    if any(re.match(OWN_LAYOUT, key) for key in state):
        raise ValueError(f"{arguments.source}: is a checkpoint of this package already; from_pretrained loads it")
    prefix = find_backbone_prefix(state)
    if prefix is None:
        found = sorted({key.split(".")[0] for key in state})[:10]
        raise ValueError(f"{arguments.source}: holds no U-Net of a known layout; its names begin with {found}")
    config = read_architecture(
        state,
        prefix,
        voxel_size=arguments.voxel_size,
        decoder_attention_heads=arguments.decoder_attention_heads,
    )
    set_seed(SEED)
    model = BiFusionForInstanceSegmentation(config)
    report = load_sv3d_weights(model, path)
    provenance = find_provenance(arguments.source, path, state, prefix)
    report.source = provenance.source
    if (report.missing or report.mismatched) and not arguments.allow_partial:
        raise ValueError(
            f"{arguments.source}: holds only part of the network. Nothing was written; --allow_partial converts it, "
            f"with a random start for the rest\n{report}"
        )
    processor = BiFusionProcessor.from_preset("sv3d", config, num_points=arguments.num_points)
    with new_folder(arguments.dest) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        report.save(folder / REPORT)
        place = arguments.push_to_hub or arguments.dest.name
        card = write_card(config, processor.num_points, report, provenance, place, arguments.license)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return report


def read_architecture(state: "dict[str, torch.Tensor]", prefix: str, **unseen: Any) -> "BiFusionConfig":
    """The configuration whose network has the checkpoint's tensors: the baseline's, with their widths and depths.

    Args:
        state: Of a checkpoint of another project.
        prefix: What stands before the U-Net's names there.
        unseen: Fields that tensors do not show.

    Raises:
        ValueError: The U-Net lacks a level, or a shape belongs to no such network.
    """
    from ..configuration_bifusion import BiFusionConfig
    from ..weights.sv3d import POINT_ENCODER, has_frame_adapters, translate

    shapes = {
        name: tuple(part.shape) for key, value in state.items() for name, part in translate(key, value, prefix).items()
    }
    levels = [f"{POINT_ENCODER}{side}_blocks.{level}" for side in ("down", "up") for level in range(4)]
    kernels = [f"{POINT_ENCODER}stem.kernel", *(f"{level}.0.conv1.kernel" for level in levels)]
    missing = [name for name in kernels if len(shapes.get(name, ())) != 3]
    if missing:
        raise ValueError(f"the U-Net under {prefix!r} has no kernel of 3 dimensions for {', '.join(missing)}")
    volume, in_channels, stem_channels = shapes[kernels[0]]
    planes = [shapes[name][2] for name in kernels[1:]]
    fields = {
        "hidden_size": planes[-1],
        "point_config": {
            "in_channels": in_channels,
            "stem_channels": stem_channels,
            "stem_kernel_size": round(volume ** (1 / 3)),
            "planes": planes,
            "blocks": [
                sum(bool(re.fullmatch(rf"{re.escape(level)}\.\d+\.conv1\.kernel", name)) for name in shapes)
                for level in levels
            ],
            "use_frame_adapters": has_frame_adapters(state),
        },
    }
    # Field, tensor whose rows tell it, rows that are none: "no object" and the semantic background.
    rows = (
        ("decoder_size", "decoder.key_proj.weight", 0),
        ("decoder_intermediate_size", "decoder.layers.0.ffn_in.weight", 0),
        ("num_labels", "decoder.class_head.out.weight", 1),
        ("num_semantic_labels", "decoder.semantic_head.weight", 1),
    )
    fields.update({field: shapes[name][0] - less for field, name, less in rows if name in shapes})
    if "decoder.box_head.out.weight" in shapes:
        fields["use_box_head"] = True
    if "merge_head.out.weight" in shapes:
        fields["use_merge_head"] = "batch" if "merge_head.out_norm.running_mean" in shapes else "layer"
    return BiFusionConfig.from_preset("sv3d", **fields, **unseen)


def find_provenance(source: str, path: Path, state: "dict[str, torch.Tensor]", prefix: str) -> Provenance:
    """Where a checkpoint comes from.

    Args:
        source: What the user named.
        path: The file on this machine.
        state: Its tensors.
        prefix: What stands before the U-Net's names.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    is_local, revision, name = Path(source).exists(), None, path.name
    if not is_local:
        # The cache keeps a repository's files under snapshots/COMMIT.
        start = len(path.parts) - 1 - path.parts[::-1].index("snapshots")
        revision, name = path.parts[start + 1], "/".join(path.parts[start + 2 :])
    is_esam = prefix == "backbone." and any(key.startswith("pool.pts_proj1.") for key in state)
    license = _ESAM_LICENSE if is_esam else LICENSES[prefix]
    return Provenance(path.name if is_local else source, name, revision, digest.hexdigest(), license)


def write_card(
    config: "BiFusionConfig",
    num_points: int,
    report: "WeightLoadReport",
    provenance: Provenance,
    place: str,
    license: str,
) -> str:
    """The card (README.md) of a converted checkpoint.

    Args:
        config: Of the model.
        num_points: Points a frame, of its processor.
        report: What was loaded.
        provenance: Where it comes from.
        place: Repository or folder that the card's example loads.
        license: For the header.
    """
    from huggingface_hub import ModelCardData

    from ..version import __version__

    repository = provenance.source.partition(":")[0]
    data = ModelCardData(
        license=license,
        license_name="see-the-card" if license == "other" else None,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=["bifusion", "rgb-d", "3d", "point-cloud", "instance-segmentation"],
        base_model=repository if provenance.revision else None,
    )
    if config.num_labels == 1:
        labels = "It finds objects but does not name them (one class)."
    else:
        labels = f"It has {config.num_labels} classes; the source does not name them."
    if config.point_config.use_frame_adapters:
        labels += (
            " The source is an online checkpoint: on single frames its frame adapters run as on the first frame of a "
            "sequence; `SceneSession` and `bifusion-scan` merge the frames of a sequence by its learned rules."
        )
    if report.missing or report.mismatched:
        extent = (
            f"\n**Not a whole network:** what the source does not hold has a random start (seed {SEED}). Train it."
        )
    else:
        extent = f"\nThe whole network comes from the source: {len(report.loaded)} tensors."
    return _CARD.format(
        metadata=data.to_yaml().strip(),
        title=place.split("/")[-1],
        voxel=config.voxel_size * 100,
        points=f"{num_points:,}",
        labels=labels,
        extent=extent,
        place=place,
        source=provenance.source,
        file=provenance.file,
        revision=f"`{provenance.revision}`" if provenance.revision else "local file",
        sha256=provenance.sha256,
        version=__version__,
        license=provenance.license,
        table=report.table(),
        report=REPORT,
    )


if __name__ == "__main__":
    main()
