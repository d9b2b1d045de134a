"""What a GPU would have to do, counted on a pretended one: no device is needed, and a new wait shows."""

import pytest
import torch
from launch_counter import DEVICE, LaunchCounter, count_forward, count_update, move, move_batch, narrow_network
from torch.utils._pytree import tree_map_only

from bifusion_hf.sparse import radius_neighbors, voxelize


# The tool


def count(function):
    with LaunchCounter() as counter:
        function()
    return counter.launches.total(), counter.waits.total()


@pytest.fixture
def pretended():
    """Values on the pretended device: float32 [6] and [2, 3], bool [6], int64 [3]."""
    with LaunchCounter():
        tensors = torch.arange(6.0), torch.ones(2, 3), torch.arange(6) > 2, torch.tensor([1, 1, 5])
        return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize(
    ("function", "launches", "waits"),
    [
        (lambda x, m, mask, places: x + 1, 1, 0),
        (lambda x, m, mask, places: x.view(2, 3)[:1].T, 0, 0),
        (lambda x, m, mask, places: torch.empty(4, device=x.device), 0, 0),
        (lambda x, m, mask, places: torch.zeros(4, device=x.device), 1, 0),
        (lambda x, m, mask, places: x[places], 1, 0),
        (lambda x, m, mask, places: x.sum().item(), 1, 1),
        (lambda x, m, mask, places: bool(mask.any()), 1, 1),
        (lambda x, m, mask, places: x.tolist(), 1, 1),
        (lambda x, m, mask, places: x.cpu().numpy(), 1, 1),
        (lambda x, m, mask, places: x.to("cpu", non_blocking=True), 1, 0),
        (lambda x, m, mask, places: x.to(x.device), 0, 0),
        (lambda x, m, mask, places: torch.ones(3).to(x.device), 1, 1),
        (lambda x, m, mask, places: torch.ones(3).to(x.device, non_blocking=True), 1, 0),
        (lambda x, m, mask, places: torch.tensor([1.0, 2.0], device=x.device), 1, 1),
        (lambda x, m, mask, places: x.new_tensor([1.0]), 1, 1),
        (lambda x, m, mask, places: x[mask], 1, 1),
        (lambda x, m, mask, places: x[[0, 2]], 1, 1),
        (lambda x, m, mask, places: x.clone().masked_fill_(mask, 0), 2, 0),
        (lambda x, m, mask, places: x.clone().__setitem__(mask, 0), 2, 1),
        (lambda x, m, mask, places: mask.nonzero(), 1, 1),
        (lambda x, m, mask, places: x.masked_select(mask), 1, 1),
        (lambda x, m, mask, places: torch.unique(places), 1, 1),
        (lambda x, m, mask, places: torch.bincount(places), 1, 2),
        (lambda x, m, mask, places: torch.repeat_interleave(places), 1, 1),
        (lambda x, m, mask, places: torch.repeat_interleave(places, output_size=7), 1, 0),
        (lambda x, m, mask, places: torch.linalg.eigh(m[:, :2]), 1, 1),
        (lambda x, m, mask, places: torch.linalg.eigvals(m[:, :2]), 1, 1),
    ],
)
def test_what_is_counted(pretended, function, launches, waits):
    assert count(lambda: function(*pretended)) == (launches, waits)


def test_values_and_gradients_are_those_of_the_cpu():
    def computed(x):
        y = torch.nn.functional.layer_norm(x.T.relu() @ x, (4,))
        y = y.index_select(0, torch.tensor([1, 1, 2], device=x.device))
        y[1:] += y.sum()
        return y.softmax(1)

    values = torch.linspace(-1, 2, 12).view(3, 4)
    expected = values.clone().requires_grad_()
    result = computed(expected)
    result.square().sum().backward()
    with LaunchCounter() as counter:
        x = values.to(DEVICE).requires_grad_()
        found = computed(x)
        assert found.device == DEVICE and found.is_cuda
        found.square().sum().backward()
        assert torch.equal(found.detach().cpu(), result.detach()) and torch.equal(x.grad.cpu(), expected.grad)
    assert counter.launches["backward"] > 10


def test_devices_do_not_mix(pretended):
    with LaunchCounter(), pytest.raises(RuntimeError, match="found cuda:0 and cpu"):
        pretended[0] + torch.arange(6.0)
    with LaunchCounter(), pytest.raises(TypeError, match="Tensor.cpu"):
        pretended[0].numpy()
    with pytest.raises(RuntimeError, match="within a LaunchCounter"):
        pretended[0] + 1


def test_places_and_parts(pretended, make_batch):
    points, samples = torch.rand(50, 3), torch.zeros(50, dtype=torch.int64)
    with LaunchCounter() as counter:
        grid = voxelize(points.to(DEVICE), samples.to(DEVICE), 0.1, 1)
        with counter.part("a part"):
            len(grid.coarser())
    assert counter.waits["a part"] == 1
    places = {place.split(":")[0] for place in counter.waits if ":" in place}
    assert places == {"sparse/voxels.py"}
    assert "waits:      1 a part" in counter.report()


# The parts


def room(num_points=3000, batch_size=2):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(num_points, 3, generator=generator) * torch.tensor([3.0, 3.0, 0.1])
    return points, torch.arange(num_points) * batch_size // num_points


def grids():
    """A grid on the CPU and the same on the pretended device, within a LaunchCounter."""
    points, samples = room()
    return (
        voxelize(points, samples, 0.04, 2),
        voxelize(points.to(DEVICE), samples.to(DEVICE), 0.04, 2),
    )


def test_a_gpu_finds_the_same_grids_maps_and_neighbours():
    with LaunchCounter():
        grid, other = grids()
        for _ in range(3):
            assert torch.equal(grid.coordinates, other.coordinates.cpu())
            assert torch.equal(grid.octants, other.octants.cpu())
            for kind, size, dilation in (("submanifold", 3, 1), ("submanifold", 3, 2), ("strided", 2, 1)):
                ours, theirs = (each.kernel_maps(kind, size, dilation) for each in (grid, other))
                assert torch.equal(ours.forward.table, theirs.forward.table.cpu())
                assert torch.equal(ours.backward.table, theirs.backward.table.cpu())
            for arguments in ((2, 5), (1, None)):
                both = radius_neighbors(grid, *arguments), radius_neighbors(other, *arguments)
                for ours, theirs in zip(*both, strict=True):
                    assert torch.equal(ours, theirs.cpu())
            grid, other = grid.coarser(), other.coarser()


def test_what_grids_and_neighbours_cost():
    with LaunchCounter():
        _, grid = grids()
        # Made once for a device.
        grid.kernel_maps("submanifold", 3, 1)
    assert count(lambda: grid.kernel_maps("submanifold", 3, 2))[1] == 0
    launches, waits = count(lambda: radius_neighbors(grid, 3, 16))
    assert waits == 1 and launches < 60
    with LaunchCounter():
        coarser = grid.coarser()
    assert count(lambda: grid.kernel_maps("strided", 2))[1] == 0
    for kind, kernel_map in (("submanifold", coarser), ("strided", grid)):
        with LaunchCounter():
            maps = kernel_map.kernel_maps(kind, 3 if kind == "submanifold" else 2).forward
        assert count(lambda maps=maps: maps.plan(1))[1] == 0


def test_a_large_search_is_cut_into_chunks_on_a_gpu_too(monkeypatch):
    from bifusion_hf.sparse import neighbors

    monkeypatch.setattr(neighbors, "CUDA_CHUNK_ROWS", 100)
    with LaunchCounter() as counter:
        grid, other = grids()
        for ours, theirs in zip(radius_neighbors(grid, 2, 5), radius_neighbors(other, 2, 5), strict=True):
            assert torch.equal(ours, theirs.cpu())
    assert sum(n for place, n in counter.waits.items() if place.startswith("sparse/neighbors")) == -(-len(grid) // 100)


# The network


@pytest.fixture(scope="module")
def frame(make_batch):
    batch = make_batch((900,), image_size=(64, 96))
    return {name: value for name, value in batch.items() if not name.endswith("_labels")}


def test_a_frame_through_simple(frame):
    counter = count_forward(narrow_network("simple"), frame)
    beyond = counter.launches.total() - counter.launches["convolutions"] - counter.launches["finish"]
    assert counter.launches["convolutions"] > 100
    assert beyond <= 600 and counter.waits.total() <= 15, counter.report()


@pytest.fixture(scope="module")
def update_of_full(make_batch):
    batch = make_batch((700, 650, 600, 700, 650, 600), image_size=(64, 96))
    return count_update(narrow_network("full"), {**batch, "query_seeds": torch.arange(6)})


def test_an_update_of_full(update_of_full):
    counter = update_of_full
    assert counter.waits.total() <= 120, counter.report()
    assert counter.launches["backward"] > 1000


def test_a_gpu_computes_what_a_cpu_computes(frame):
    network = narrow_network("full").eval()
    with torch.no_grad():
        expected = network(**frame)
    with LaunchCounter():
        with torch.no_grad():
            found = move(network)(**move_batch(frame))
        for name in ("class_queries_logits", "masks_queries_logits", "semantic_queries_logits"):
            ours, theirs = expected[name], found[name].cpu()
            assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max(), name


def test_deterministic_updates_need_nothing_that_cuda_refuses(update_of_full, make_batch):
    batch = {**make_batch((250, 200), image_size=(64, 96)), "query_seeds": torch.arange(2)}
    try:
        torch.use_deterministic_algorithms(True)
        refused = count_update(narrow_network("full"), batch).refused
    finally:
        torch.use_deterministic_algorithms(False)
    # They are what the switch is about: without it the faster forms are taken.
    assert len(update_of_full.refused) == 2 and not refused, (update_of_full.refused, refused)


@pytest.mark.gpu
def test_deterministic_updates_have_the_same_bits_on_cuda(make_batch):
    batch = {**make_batch((3000, 2500), image_size=(64, 96)), "query_seeds": torch.arange(2)}
    batch = tree_map_only(torch.Tensor, lambda tensor: tensor.cuda(), batch)
    network = narrow_network("full").train().cuda()
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            network.zero_grad()
            network(**batch).loss.backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in network.named_parameters()})
    finally:
        torch.use_deterministic_algorithms(False)
    for others in gradients[1:]:
        assert not [name for name, gradient in others.items() if not torch.equal(gradient, gradients[0][name])]


@pytest.mark.gpu
def test_the_profiler_sees_what_is_counted(frame):
    """Waits of a real device, as its driver's calls; sorting and the like launch more kernels than they are ops."""
    counted = count_forward(narrow_network("simple"), frame)
    network = narrow_network("simple").eval().cuda()
    batch = {name: value.cuda() for name, value in frame.items()}
    with torch.no_grad():
        network(**batch)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            network(**batch)
    waits = sum(event.count for event in profile.key_averages() if event.key == "cudaStreamSynchronize")
    # The tables of offsets are made once.
    assert waits <= counted.waits.total() + 3
