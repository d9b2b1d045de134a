import math

import pytest
import torch

from bifusion_hf.layers import geometry
from bifusion_hf.layers.geometry import FiLM, GeometricEncoding, _sample_by_rows, sample_tokens


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_tokens_are_read_where_the_pixel_is(stride):
    """A map whose values are its own coordinates gives the coordinates back: no half-pixel is lost."""
    height, width = 480, 640
    rows, columns = height // stride, width // stride
    y, x = torch.meshgrid(
        (torch.arange(rows, dtype=torch.float64) + 0.5) / rows,
        (torch.arange(columns, dtype=torch.float64) + 0.5) / columns,
        indexing="ij",
    )
    tokens = torch.stack([x, y]).unsqueeze(0)
    generator = torch.Generator().manual_seed(0)
    margin = torch.tensor([0.5 / columns, 0.5 / rows], dtype=torch.float64)
    pixels = margin + (1 - 2 * margin) * torch.rand(1, 5000, 2, generator=generator, dtype=torch.float64)
    assert (sample_tokens(tokens, pixels) - pixels).abs().max() < 1e-9
    # In float32, in pixels of the image.
    error = (sample_tokens(tokens.float(), pixels.float()) - pixels).abs() * torch.tensor([width, height])
    assert error.max() < 1e-3


def test_the_border_is_constant():
    tokens = torch.arange(6.0).reshape(1, 1, 2, 3)
    corners = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    assert sample_tokens(tokens, corners).flatten().tolist() == [0, 2, 3, 5]


def test_tokens_that_look_before_the_middle_of_their_block_are_read_there():
    """A shift of 0.3 rows and 0.1 columns: what lies at a pixel is so much further on in the map."""
    rows, columns = torch.arange(4, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    tokens = torch.stack([columns.expand(4, 6), rows[:, None].expand(4, 6)])[None]
    pixels = torch.tensor([[[2.5 / 6, 1.5 / 4], [3.1 / 6, 2.6 / 4]]], dtype=torch.float64)
    expected = torch.tensor([[[2.1, 1.3], [2.7, 2.4]]], dtype=torch.float64)
    torch.testing.assert_close(sample_tokens(tokens, pixels, (0.3, 0.1)), expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("is_deterministic", [False, True])
def test_only_another_device_that_has_to_be_deterministic_samples_by_rows(monkeypatch, device, is_deterministic):
    asked = []
    by_rows = lambda tokens, places: asked.append(tokens.dtype) or _sample_by_rows(tokens, places)  # noqa: E731
    monkeypatch.setattr(geometry, "_sample_by_rows", by_rows)
    tokens = torch.zeros(2, 3, 4, 6, dtype=torch.bfloat16, device=device)
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        sampled = sample_tokens(tokens, torch.full((2, 5, 2), 0.5, device=device))
    finally:
        torch.use_deterministic_algorithms(False)
    assert sampled.shape == (2, 5, 3) and sampled.dtype == torch.bfloat16
    # In single precision: the gradients of a token's points are added up.
    assert asked == ([torch.float32] if device == "meta" and is_deterministic else [])


@pytest.mark.parametrize("size", [(5, 7), (1, 4), (1, 1)])
def test_sampling_by_rows_is_sampling(size):
    """The form for deterministic training on a GPU: values, and gradients of tokens and places."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
    # Beyond the borders too; the borders themselves are kinks.
    places = 2.4 * torch.rand(2, 400, 2, generator=generator, dtype=torch.float64) - 1.2
    weights = torch.randn(2, 400, 3, generator=generator, dtype=torch.float64)
    results = []
    for sample in (
        lambda tokens, places: torch.nn.functional.grid_sample(
            tokens, places.unsqueeze(2), padding_mode="border", align_corners=False
        ).squeeze(3).transpose(1, 2),
        _sample_by_rows,
    ):  # fmt: skip
        leaves = tokens.clone().requires_grad_(), places.clone().requires_grad_()
        out = sample(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, weights)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.gpu
def test_deterministic_sampling_on_cuda():
    tokens = torch.randn(2, 3, 5, 7, device="cuda", requires_grad=True)
    pixels = torch.rand(2, 5000, 2, device="cuda")
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            gradients.append(torch.autograd.grad(sample_tokens(tokens, pixels).square().sum(), tokens)[0])
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def cloud(samples=2, points=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(samples * points, 3, generator=generator, dtype=torch.float64)
    # Nobody's box has the origin in it.
    return positions + torch.tensor([9.0, -8.0, 7.0]), torch.arange(samples).repeat_interleave(points)


def test_encoding_has_its_parts():
    encoding = GeometricEncoding(voxel_size=0.1).double()
    points, sample = cloud(samples=5, points=80)
    rotations = torch.linalg.qr(torch.randn(5, 3, 3, dtype=torch.float64))[0]
    encoded = encoding(points, sample, rotations)
    assert encoded.shape == (400, encoding.size) and encoding.size == 64
    for index in range(5):
        own, part = points[sample == index], encoded[sample == index]
        box = own.amax(0) - own.amin(0)
        torch.testing.assert_close(part[:, :3], own / box.norm())
        torch.testing.assert_close(part[:, 3:6], (box / box.norm()).expand(80, 3))
        torch.testing.assert_close(part[:, 6:15], rotations[index].flatten().expand(80, 9))
        torch.testing.assert_close(part[:, 15], (own[:, 2] - own[:, 2].min()) / box.norm())
        # As many half-waves fit into the diagonal as voxels do, and no frequency reaches that.
        highest = math.pi * box.norm() / 0.1
        frequencies = [highest * math.tanh(f / highest) for f in encoding.log_frequencies.exp().tolist()]
        phases = torch.stack([own[:, axis] / box.norm() * f for axis in range(3) for f in frequencies], dim=1)
        torch.testing.assert_close(part[:, 16:40], phases.sin())
        torch.testing.assert_close(part[:, 40:], phases.cos())


def test_a_scene_without_extent_is_measured_by_two_voxels():
    encoding = GeometricEncoding(voxel_size=0.05)
    encoded = encoding(torch.tensor([[0.3, -0.2, 0.4]]), torch.tensor([0]), torch.eye(3, dtype=torch.float64)[None])
    assert encoded.dtype == torch.float32
    expected = torch.tensor([3, -2, 4, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0])
    torch.testing.assert_close(encoded[0, :16], expected.float())


def test_parts_of_the_encoding_have_their_places_and_layers_the_sizes_of_checkpoints():
    encoding = GeometricEncoding(voxel_size=0.02, num_frequencies=2)
    assert encoding.size == 28
    torch.testing.assert_close(encoding.log_frequencies.detach().exp(), math.pi * torch.tensor([1.0, 64.0]))
    assert {name: tuple(value.shape) for name, value in FiLM(28, 16).state_dict().items()} == {
        "hidden.weight": (128, 28),
        "hidden.bias": (128,),
        "modulation.weight": (32, 128),
        "modulation.bias": (32,),
    }


def test_no_frequency_reaches_the_voxels_nyquist_and_all_are_learnable():
    encoding = GeometricEncoding(voxel_size=0.1).double()
    with torch.no_grad():
        encoding.log_frequencies.fill_(math.log(1e4))
    # Two points 1 m apart along x, diagonal 1 m: the phase between them is the angular frequency itself.
    points = torch.tensor([[0.0, 0, 0], [0.01, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    encoded = encoding(points, torch.zeros(3, dtype=torch.int64), torch.eye(3, dtype=torch.float64)[None])
    phase = torch.atan2(encoded[1, 16], encoded[1, 40])
    assert phase / 0.01 <= math.pi / 0.1 + 1e-9
    encoding.reset_parameters()
    points, sample = cloud()
    encoding(points, sample, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))[:, 16:].pow(3).sum().backward()
    assert (encoding.log_frequencies.grad.abs() > 0).all()


def test_film_starts_as_the_identity_and_learns():
    film = FiLM(64, 16)
    condition, first, second = torch.randn(10, 64), torch.randn(10, 16), torch.randn(10, 16)
    for given, modulated in zip((first, second), film(condition, first, second), strict=True):
        assert torch.equal(given, modulated)
    film(condition, first)[0].square().sum().backward()
    assert film.modulation.weight.grad.abs().sum() > 0
