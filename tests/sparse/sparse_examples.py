"""Voxels, and an independent slow convolution over them."""

import torch

from bifusion_hf.sparse import VoxelGrid


def random_coordinates(count=200, low=-5, high=6, samples=2, stride=1, seed=0):
    """Unique int32 [V, 4], in random order, V a little under `count`."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(low, high, (count, 3), generator=generator) * stride
    sample = torch.randint(0, samples, (count, 1), generator=generator)
    coordinates = torch.unique(torch.cat([sample, xyz], dim=1), dim=0).int()
    return coordinates[torch.randperm(len(coordinates), generator=generator)]


def random_grid(batch_size=2, **options):
    return VoxelGrid(random_coordinates(**options), batch_size, options.get("stride", 1))


def slow_convolution(in_coordinates, features, kernel, offsets, out_coordinates):
    """out[u] = sum_k in[u + offset_k] @ kernel[k], offset by offset; pairs are looked up one by one."""
    row = {tuple(coordinate): i for i, coordinate in enumerate(in_coordinates.tolist())}
    out = features.new_zeros(len(out_coordinates), kernel.shape[-1])
    places = out_coordinates.tolist()
    for k, (dx, dy, dz) in enumerate(offsets):
        pairs = ((row.get((sample, x + dx, y + dy, z + dz)), i) for i, (sample, x, y, z) in enumerate(places))
        pairs = torch.tensor([pair for pair in pairs if pair[0] is not None], dtype=torch.int64).view(-1, 2)
        out = out.index_add(0, pairs[:, 1], features[pairs[:, 0]] @ kernel[k])
    return out


class Scaled(torch.autograd.Function):
    """What it is given, with its gradient multiplied."""

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None
