"""The image branch: a vision tower, and the head that projects its tokens."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModel

from ..configuration_bifusion import BiFusionConfig, tower_width


# Modules of towers that nothing here reads: they are replaced, so that no parameter is left without a consumer.
UNUSED_TOWER_MODULES = {
    "clip_vision_model": ["post_layernorm"],
    "convnext": ["layernorm"],
    "convnextv2": ["layernorm"],
}
# Towers of odd kernels, whose feature i looks at the pixels around i * stride: not the middle of its block, but its
# first pixel. Patches, and ConvNeXt's even kernels, look at the block.
FIRST_PIXEL_TOWERS = ("resnet",)
UNUSED_TOWER_OPTIONS = {
    "siglip_vision_model": {"vision_use_head": False},
    "dinov2": {"use_mask_token": False},
    "dinov2_with_registers": {"use_mask_token": False},
}


class ProjectionHead2D(nn.Module):
    """LayerNorm-GELU-Linear-GELU-Linear on tokens; it always trains."""

    def __init__(self, in_features: int, hidden_size: int, out_features: int):
        super().__init__()
        self.norm = nn.LayerNorm(in_features)
        self.hidden = nn.Linear(in_features, hidden_size)
        self.out = nn.Linear(hidden_size, out_features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [..., in_features] to [..., out_features]."""
        tokens = nn.functional.gelu(self.norm(tokens))
        return self.out(nn.functional.gelu(self.hidden(tokens)))


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and not variadic


class _ResizingByProducts(TorchFunctionMode):
    """`nn.functional.interpolate` of maps as two matrix products, whose gradient is the same every time."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is nn.functional.interpolate:
            return resize_by_products(*args, **kwargs)
        return func(*args, **kwargs)


def _resizing(device: torch.device) -> AbstractContextManager:
    """How towers interpolate their position tables on a device."""
    if device.type == "cpu" or not (torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()):
        return nullcontext()
    return _ResizingByProducts()


def resize_by_products(
    values: torch.Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    **options: Any,
) -> torch.Tensor:
    """`nn.functional.interpolate` of [B, C, h, w], which is one linear map for the rows and one for the columns.

    Args:
        values: [B, C, h, w].
        size: (rows, columns) of the result; a number stands for both.
        scale_factor: As an alternative, likewise.
        options: `mode` and others, which hold for both axes.
    """
    result = values
    for index, axis in enumerate((2, 3)):
        length = values.shape[axis]
        wanted = {
            name: (value[index] if isinstance(value, Sequence) else value, unchanged)
            for name, value, unchanged in (("size", size, 2), ("scale_factor", scale_factor, 1))
            if value is not None
        }
        # Channel i is a map of two columns of which the i-th pixels alone are 1: [1, length, length, 2]. (Of a single
        # column, torch's antialiasing on a CPU takes channels for pixels.)
        pixels = torch.eye(length, dtype=values.dtype, device=values.device)[None, :, :, None].repeat(1, 1, 1, 2)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            matrix = nn.functional.interpolate(pixels, **wanted, **options)[0, :, :, 0]  # [length, result]
        result = (result.transpose(axis, 3) @ matrix).transpose(axis, 3)
    return result


class _PositionTable:
    """What a tower does with an `nn.Embedding` of positions: reads its weights, or looks some of them up."""

    def __init__(self, weight: torch.Tensor):
        self.weight = weight

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(places, self.weight)


class _WithPositions:
    """A module of a tower as it is, but for the weights of its position table."""

    def __init__(self, module: nn.Module, weight: torch.Tensor):
        self._module = module
        self.position_embedding = _PositionTable(weight)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _interpolate_positions(module: nn.Module, embeddings: torch.Tensor, *size: int) -> torch.Tensor:
    """The tower's own `interpolate_pos_encoding`, with a position table that a call gives.

    On a CPU, where nothing is learnt, the result is kept for frames of the same size, with the table that it is of.
    """
    places = torch.arange(module.position_embedding.num_embeddings, device=embeddings.device)
    table = module.position_embedding(places)
    is_kept = table.device.type == "cpu" and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    form = embeddings.shape[1], size
    kept_form, kept_table, kept = getattr(module, "_kept_positions", (None, None, None))
    # Compared by content: weights are loaded, averaged and moved in many ways.
    if is_kept and kept_form == form and kept_table.dtype == table.dtype and torch.equal(kept_table, table):
        return kept
    result = type(module).interpolate_pos_encoding(_WithPositions(module, table), embeddings, *size)
    if is_kept:
        module._kept_positions = form, table, result
    return result


class ImageEncoder(nn.Module):
    """Features of the configured tower, projected, as a map over the image.

    The tower is transformers' own, so attention back ends, gradient checkpointing and published weights work as
    everywhere. The aspect of the image is kept; position embeddings are interpolated by the tower. A tower gives patch
    tokens, or a map of features as convolutional networks do.

    Raises:
        ValueError: A tower whose forward needs more than an image.
    """

    def __init__(self, config: BiFusionConfig):
        super().__init__()
        vision_config = config.vision_config
        for name, value in UNUSED_TOWER_OPTIONS.get(vision_config.model_type, {}).items():
            setattr(vision_config, name, value)
        self.vision_model = AutoModel.from_config(vision_config)
        for name in UNUSED_TOWER_MODULES.get(vision_config.model_type, ()):
            setattr(self.vision_model, name, nn.Identity())
        if "add_pooling_layer" in inspect.signature(type(self.vision_model).__init__).parameters:
            self.vision_model.pooler = None
        self._replace_mask_token()
        self._call_position_tables()
        parameters = inspect.signature(type(self.vision_model).forward).parameters
        self._interpolates = "interpolate_pos_encoding" in parameters
        needed = [name for name, parameter in parameters.items() if name != "self" and _is_required(parameter)]
        if set(needed) - {"pixel_values"}:
            raise ValueError(
                f"vision_config {vision_config.model_type!r}: the tower needs {', '.join(needed)}; expected one that "
                "needs pixel_values [B, 3, H, W] alone"
            )
        self.patch_size = config.image_patch_size
        # (rows, columns), in features, from where a feature looks to the middle of its block of pixels.
        at_first = vision_config.model_type in FIRST_PIXEL_TOWERS
        self.shift = tuple(at_first * (0.5 - 0.5 / size) for size in self.patch_size)
        self.projection = ProjectionHead2D(
            tower_width(vision_config), config.projection_hidden_size, config.projection_dim
        )

    def _replace_mask_token(self) -> None:
        # Some towers read their mask token in every forward without using it; as a buffer it is no dead parameter.
        for module in self.vision_model.modules():
            token = getattr(module, "mask_token", None)
            if isinstance(token, nn.Parameter):
                del module.mask_token
                module.register_buffer("mask_token", torch.zeros_like(token), persistent=False)

    def _call_position_tables(self) -> None:
        # CLIP, SigLIP and others read the weights of their position table without calling it; what keeps weights
        # elsewhere, as Accelerate's offloading does, brings them only for a call.
        for module in self.vision_model.modules():
            has_table = isinstance(getattr(module, "position_embedding", None), nn.Embedding)
            if has_table and hasattr(module, "interpolate_pos_encoding"):
                module.interpolate_pos_encoding = partial(_interpolate_positions, module)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> tuple[torch.Tensor, tuple | None, tuple | None]:
        """Projected tokens of images.

        Args:
            pixel_values: [B, 3, H, W], normalised RGB; H and W are multiples of the patch size.
            kwargs: `output_hidden_states` and `output_attentions` for the tower.

        Returns:
            The map [B, projection_dim, H / patch, W / patch], and the tower's hidden states and attentions or None.

        Raises:
            ValueError: H or W is no multiple of the patch size: the map would not cover the whole image. Or the tower
                gives a map of another size than its configuration says.
        """
        height, width = pixel_values.shape[-2:]
        if height % self.patch_size[0] or width % self.patch_size[1]:
            raise ValueError(
                f"pixel_values are {height}x{width}; the tower needs multiples of its patch size {self.patch_size}"
            )
        if self._interpolates:
            kwargs["interpolate_pos_encoding"] = True
        with _resizing(pixel_values.device):
            outputs = self.vision_model(pixel_values, return_dict=True, **kwargs)
        rows, columns = height // self.patch_size[0], width // self.patch_size[1]
        features = outputs.last_hidden_state
        is_map = features.ndim == 4
        fits = features.shape[2:] == (rows, columns) if is_map else features.shape[1] >= rows * columns
        if not fits:
            raise ValueError(
                f"{type(self.vision_model).__name__} made {'a map' if is_map else 'tokens'} {list(features.shape)} of "
                f"images of {height}x{width}; expected {rows} x {columns} features, one for {self.patch_size} pixels"
            )
        if is_map:
            features = features.flatten(2).transpose(1, 2)
        # Class and register tokens come first in all of transformers' towers.
        tokens = self.projection(features[:, -rows * columns :])
        tokens = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return tokens, outputs.get("hidden_states"), outputs.get("attentions")
