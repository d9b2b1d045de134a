import numpy as np
import pytest
import torch

from bifusion_hf.sparse import StridedConv3d, SubmanifoldConv3d, TransposedConv3d, VoxelGrid


CASES = {
    "k5s1": "submanifold",
    "k3s1": "submanifold",
    "k3s1_stride4": "submanifold",
    "k3dil3": "submanifold",
    "k3dil3_stride2": "submanifold",
    "k1": "submanifold",
    "k1_transposed": "submanifold",
    "k2s2": "strided",
    "k2s2_stride4": "strided",
    "k2s2_transposed": "transposed",
    "k2s2_transposed_stride4": "transposed",
}


def match_rows(wanted, found):
    """Index such that found[index] has the rows of wanted, for two sets of unique coordinates."""
    position = {tuple(row): i for i, row in enumerate(found.tolist())}
    assert len(position) == len(wanted) == len(found)
    return torch.tensor([position[tuple(row)] for row in wanted.tolist()])


@pytest.mark.parametrize("case", CASES)
def test_reference(reference, case):
    """MinkowskiEngine's own results and gradients, to 1e-5 of each one's largest value."""
    data = np.load(reference / "sparse_conv.npz")
    value = {
        key: torch.from_numpy(data[f"{case}_{key}"])
        for key in (
            "in_coords",
            "in_feats",
            "kernel",
            "out_coords",
            "out_feats",
            "grad_weights",
            "grad_in_feats",
            "grad_kernel",
        )
    }
    kind, size, dilation = CASES[case], int(data[f"{case}_kernel_size"]), int(data[f"{case}_dilation"])
    channels = value["kernel"].shape[-2:]
    if kind == "transposed":
        fine = VoxelGrid(value["out_coords"], 2, int(data[f"{case}_out_stride"]))
        grid, layer = fine.coarser(), TransposedConv3d(*channels)
    else:
        grid = VoxelGrid(value["in_coords"], 2, int(data[f"{case}_in_stride"]))
        layer = StridedConv3d(*channels) if kind == "strided" else SubmanifoldConv3d(*channels, size, dilation)
    to_reference = match_rows(value["in_coords"], grid.coordinates)
    to_grid = torch.argsort(to_reference)
    assert layer.kernel.shape == value["kernel"].shape
    with torch.no_grad():
        layer.kernel.copy_(value["kernel"])
    features = value["in_feats"].clone().requires_grad_()
    from bifusion_hf.sparse import SparseTensor

    out = layer(SparseTensor(features[to_grid], grid))
    assert out.grid.stride == int(data[f"{case}_out_stride"])
    result = out.features[match_rows(value["out_coords"], out.grid.coordinates)]
    (result * value["grad_weights"]).sum().backward()
    for found, name in ((result, "out_feats"), (features.grad, "grad_in_feats"), (layer.kernel.grad, "grad_kernel")):
        wanted = value[name]
        error = (found.detach() - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-5, (name, float(error))
