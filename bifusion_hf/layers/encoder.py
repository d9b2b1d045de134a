"""The encoder: both branches, and their fusion into one feature for each point."""

from dataclasses import dataclass

import torch
from torch import nn

from ..configuration_bifusion import BiFusionConfig
from ..sparse import VoxelGrid, voxelize
from .frame_batch import FrameBatch
from .frame_memory import FrameMemory
from .fusion import EnhancedFusionGate, Fusion, LiteFusionGate, unit_length
from .geometry import FiLM, GeometricEncoding, sample_tokens
from .image_encoder import ImageEncoder
from .local_attention import TinySA2D, TinySA3D
from .point_encoder import Res16UNet


@dataclass
class PointEncoding:
    """What the encoder gives for the P real points of a batch.

    Args:
        frames: The batch.
        features: [P, hidden_size], fused.
        grid: Voxels of the points, at stride 1.
        fusion_weights: [P, 1], or None without an image branch; so are the next two.
        image_embeds: [P, projection_dim], unit length, from the image.
        point_embeds: [P, projection_dim], unit length, from the points.
        hidden_states: Of the image tower, where asked for.
        attentions: Of the image tower, where asked for.
        memory: Of the frame adapters with these frames, where one was given.
    """

    frames: FrameBatch
    features: torch.Tensor
    grid: VoxelGrid
    fusion_weights: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    point_embeds: torch.Tensor | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None
    memory: FrameMemory | None = None


class BiFusionEncoder(nn.Module):
    """Points and image to one feature for each point.

    The point branch gives 96 channels for each voxel; its points copy them. The image branch is sampled at the
    points' pixels. Both are projected into one space, of unit length, modulated by where the point is, and fused.
    """

    def __init__(self, config: BiFusionConfig):
        super().__init__()
        self.config = config
        self.point_encoder = Res16UNet(config.point_config)
        self.image_encoder = self.fusion = self.geometric_encoding = self.film = None
        self.tiny_sa_2d = self.tiny_sa_3d = None
        point_size, size = config.point_config.out_channels, config.projection_dim
        if config.use_tiny_sa_3d:
            self.tiny_sa_3d = TinySA3D(point_size, config)
        if config.fusion_type == "none":
            return
        self.image_encoder = ImageEncoder(config)
        if config.use_tiny_sa_2d:
            self.tiny_sa_2d = TinySA2D(size, config)
        self.point_projection = nn.Linear(point_size, size)
        self.point_projection_norm = nn.LayerNorm(size)
        if config.use_film:
            self.geometric_encoding = GeometricEncoding(config.voxel_size)
            self.film = FiLM(self.geometric_encoding.size, size)
        if config.fusion_type == "enhanced_gate":
            gate = EnhancedFusionGate(
                size, config.voxel_size, config.spatial_radius, config.spatial_k, config.use_spatial_attention
            )
        else:
            gate = LiteFusionGate(size)
        self.fusion = Fusion(gate, size, point_size, residual=config.fusion_type == "residual")

    def forward(
        self, frames: FrameBatch, hold_gate: torch.Tensor, memory: FrameMemory | None = None, **kwargs
    ) -> PointEncoding:
        """Encodes the real points of a batch.

        Args:
            frames: In the network's precision (`FrameBatch.cast`).
            hold_gate: bool [], the gate is held at 0.5.
            memory: Of the frames before, see `Res16UNet.forward`.
            kwargs: For the image tower.
        """
        points, sample = frames.real(frames.points), frames.sample
        # One voxel for a point at every precision of the network: the coordinates are float32.
        grid = voxelize(points.float(), sample, self.config.voxel_size, frames.batch_size)
        voxel_features = self.point_encoder(grid.mean(frames.real(frames.point_colors)), grid, memory)
        if memory is not None:
            voxel_features, memory = voxel_features
        if self.tiny_sa_3d is not None:
            voxel_features = self.tiny_sa_3d(voxel_features, grid)
        raw = grid.to_points(voxel_features)
        if self.fusion is None:
            return PointEncoding(frames, raw, grid, memory=memory)

        tokens, hidden_states, attentions = self.image_encoder(frames.pixel_values, **kwargs)
        if self.tiny_sa_2d is not None:
            tokens = self.tiny_sa_2d(tokens)
        sampled = sample_tokens(tokens, frames.point_pixels, self.image_encoder.shift)
        image_embeds = unit_length(frames.real(sampled))
        point_embeds = unit_length(self.point_projection_norm(self.point_projection(raw)))
        modulated = (image_embeds, point_embeds)
        if self.film is not None:
            condition = self.geometric_encoding(points, sample, frames.camera_rotations).to(raw.dtype)
            modulated = self.film(condition, *modulated)
        visible = frames.real(frames.point_visible)
        features, weights = self.fusion(raw, *modulated, points, grid, visible, sample, hold_gate)
        return PointEncoding(
            frames, features, grid, weights, image_embeds, point_embeds, hidden_states, attentions, memory
        )


def encode_windows(
    encoder: BiFusionEncoder,
    frames: FrameBatch,
    window_frames: int,
    hold_gate: torch.Tensor,
    memory: FrameMemory | None = None,
    **kwargs,
) -> PointEncoding:
    """Encodes windows frame by frame, each with the memory of those before it; gradients flow through the memory.

    Args:
        encoder: With frame adapters.
        frames: W windows of F frames, [F * W, ...]: first the first frames of all windows, then the second ones, ...
        window_frames: F.
        hold_gate: Of the encoder.
        memory: Of the frames before the windows; None = they are the first ones.
        kwargs: Of the encoder.

    Returns:
        The encoding of all frames, with the memory after the last ones.
    """
    memory = FrameMemory() if memory is None else memory
    parts = []
    for part in frames.split(window_frames):
        parts.append(encoder(part, hold_gate, memory, **kwargs))
        memory = parts[-1].memory

    def joined(name: str) -> torch.Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    def joined_layers(name: str) -> tuple | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else tuple(torch.cat(layer) for layer in zip(*values, strict=True))

    return PointEncoding(
        frames,
        joined("features"),
        voxelize(frames.real(frames.points).float(), frames.sample, encoder.config.voxel_size, frames.batch_size),
        *(joined(name) for name in ("fusion_weights", "image_embeds", "point_embeds")),
        *(joined_layers(name) for name in ("hidden_states", "attentions")),
        memory,
    )
