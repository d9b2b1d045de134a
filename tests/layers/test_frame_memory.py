"""Memory of the frame adapters and the heads of the online network, against slow implementations of their rules."""

import numpy as np
import pytest
import torch

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.layers.frame_memory import FrameAdapter, FrameMemory, remember, voxel_maximum, within_box
from bifusion_hf.layers.query_decoder import MergeHead
from bifusion_hf.sparse import SparseTensor, VoxelGrid


CHANNELS, STRIDE = 5, 2


def random_frame(seed, shift=0):
    """Voxels of two samples at stride 2, negative ones too."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(-6, 7, size=(160, 3)) + [shift, 0, 0]
    sample = rng.integers(0, 2, size=(160, 1))
    coordinates = np.unique(np.concatenate([sample, STRIDE * cells], axis=1), axis=0)
    rng.shuffle(coordinates)
    grid = VoxelGrid(torch.from_numpy(coordinates), 2, STRIDE)
    features = torch.from_numpy(rng.normal(size=(len(grid), CHANNELS)))
    return SparseTensor(features, grid)


def as_dict(x):
    return {tuple(c): x.features[row] for row, c in enumerate(x.grid.coordinates.tolist())}


def slow_norm(norm, value):
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (value - norm.running_mean) * scale + norm.bias


def slow_conv(conv, voxels, key, dilation):
    """x is the fastest axis of the kernel."""
    total = torch.zeros(CHANNELS, dtype=torch.float64)
    for k in range(27):
        offset = (k % 3 - 1, k // 3 % 3 - 1, k // 9 - 1)
        place = (key[0], *(key[a + 1] + dilation * STRIDE * offset[a] for a in range(3)))
        if place in voxels:
            total = total + voxels[place] @ conv.kernel[k]
    return total


def slow_adapt(adapter, frame, seen):
    result = {}
    for key, value in frame.items():
        near = torch.relu(slow_norm(adapter.norm_near, slow_conv(adapter.conv_near, seen, key, 1)))
        far = torch.relu(slow_norm(adapter.norm_far, slow_conv(adapter.conv_far, seen, key, 3)))
        own = [v for k, v in seen.items() if k[0] == key[0]]
        mixed = torch.cat([near, far, sum(own) / len(own)]) @ adapter.conv_mix.kernel
        result[key] = torch.relu(value + slow_norm(adapter.norm_mix, mixed))
    return result


def slow_remember(adapter, frame, bank):
    if bank is None:
        refined = slow_adapt(adapter, frame, frame)
        return refined, dict(refined)
    bank = dict(bank)
    for key, value in frame.items():
        bank[key] = torch.maximum(bank[key], value) if key in bank else value
    seen = {}
    for sample in {key[0] for key in frame}:
        places = np.array([key[1:] for key in frame if key[0] == sample])
        low, high = places.min(axis=0), places.max(axis=0)
        centre, half = (low + high) / 2, 2.5 * (high - low) / 2
        for key, value in bank.items():
            if key[0] == sample and (np.abs(np.array(key[1:]) - centre) <= half).all():
                seen[key] = value
    return slow_adapt(adapter, frame, seen), bank


@pytest.fixture(scope="module")
def adapter():
    torch.manual_seed(0)
    adapter = FrameAdapter(CHANNELS, 1e-5).double().eval()
    for norm in (adapter.norm_near, adapter.norm_far, adapter.norm_mix):
        torch.nn.init.normal_(norm.running_mean, std=0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.1)
    torch.nn.init.uniform_(adapter.norm_mix.weight, 0.5, 1.5)
    return adapter


def test_a_sequence_as_the_slow_implementation(adapter):
    bank, slow_bank = None, None
    # The third frame is far away: what it does not see has to be left out. The last one comes back.
    for seed, shift in enumerate((0, 5, 40, 2)):
        frame = random_frame(seed, shift)
        with torch.no_grad():
            refined, bank = remember(adapter, frame, bank)
            slow_refined, slow_bank = slow_remember(adapter, as_dict(frame), slow_bank)
        for found, expected in ((refined, slow_refined), (bank, slow_bank)):
            found = as_dict(found)
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, rtol=0, atol=1e-10)
    assert len(bank.grid) > 400


def test_all_norms_have_the_epsilon_of_the_network():
    adapter = FrameAdapter(4, 0.03)
    norms = [module for module in adapter.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert [norm.eps for norm in norms] == [0.03] * 3
    # It changes nothing at the start.
    assert [bool(norm.weight.any()) for norm in (adapter.norm_near, adapter.norm_far, adapter.norm_mix)] == [1, 1, 0]


def test_what_is_seen_is_the_box_scaled_about_its_centre():
    bank = SparseTensor(torch.ones(41, 1), VoxelGrid(torch.tensor([[0, x, 0, 0] for x in range(-20, 21)]), 1))
    grid = VoxelGrid(torch.tensor([[0, 2, 0, 0], [0, 6, 0, 0]]), 1)
    # 4 voxels wide, so 10 in all: from -1 to 9, the ends included.
    assert within_box(bank, grid).grid.coordinates[:, 1].tolist() == list(range(-1, 10))
    behind = VoxelGrid(torch.tensor([[0, -6, 0, 0], [0, -2, 0, 0]]), 1)
    assert within_box(bank, behind).grid.coordinates[:, 1].tolist() == list(range(-9, 2))


def test_the_larger_value_stays_and_gets_the_gradient():
    grids = [VoxelGrid(torch.tensor([[0, x, 0, 0] for x in xs]), 1) for xs in ((0, 1), (1, 2))]
    first = torch.tensor([[1.0], [5.0]], requires_grad=True)
    second = torch.tensor([[-3.0], [-4.0]], requires_grad=True)
    union = voxel_maximum(SparseTensor(first, grids[0]), SparseTensor(second, grids[1]))
    # A negative value of a voxel that only one of them has is no smaller than nothing.
    assert union.features.flatten().tolist() == [1, 5, -4]
    union.features.sum().backward()
    assert first.grad.flatten().tolist() == [1, 1] and second.grad.flatten().tolist() == [0, 1]


def test_the_bank_keeps_its_precision():
    """What a network of another precision adds to it comes in that of the bank."""
    double = [random_frame(seed) for seed in range(2)]
    single = [x.replace(x.features.float()) for x in double]
    for bank, frame in ((double[0], single[1]), (single[0], double[1])):
        refined, found = remember(lambda x, around: x, frame, bank)
        assert refined.features.dtype == frame.features.dtype and found.features.dtype == bank.features.dtype


def online_config(small_config, **changes):
    values = {"use_box_head": True, "use_merge_head": "layer"}
    point_config = {"stem_channels": 8, "planes": [8, 8, 12, 12, 12, 12, 12, 12], "blocks": [1] * 8}
    return small_config("none", point_config={**point_config, "use_frame_adapters": True}, **{**values, **changes})


def with_effect(network):
    """The adapters of a new network change nothing."""
    for adapter in network.model.encoder.point_encoder.frame_adapters:
        torch.nn.init.uniform_(adapter.norm_mix.weight, 0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def network(small_config):
    torch.manual_seed(1)
    return with_effect(BiFusionForInstanceSegmentation(online_config(small_config))).double().eval()


def inputs(batch):
    labels = ("mask_labels", "class_labels", "semantic_labels")
    return {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in batch.items()
        if name not in labels
    }


def test_the_memory_is_a_state_that_goes_in_and_comes_out(network, make_batch):
    first, second = (inputs(make_batch(seed=seed)) for seed in range(2))
    with torch.no_grad():
        alone, begun = network(**second), network(**first, frame_memory=FrameMemory())
        again = network(**first)
        assert again.frame_memory is None and len(begun.frame_memory.levels) == 4
        # The first frame of a sequence is what a frame without memory is.
        torch.testing.assert_close(begun.masks_queries_logits, again.masks_queries_logits)
        kept = [level.features.clone() for level in begun.frame_memory.levels]
        gone_on = [network(**second, frame_memory=begun.frame_memory) for _ in range(2)]
        after = network(**second)
    for level, features in zip(begun.frame_memory.levels, kept, strict=True):
        assert torch.equal(level.features, features)
    assert torch.equal(gone_on[0].masks_queries_logits, gone_on[1].masks_queries_logits)
    assert torch.equal(alone.masks_queries_logits, after.masks_queries_logits)
    assert (gone_on[0].masks_queries_logits - alone.masks_queries_logits).abs().max() > 1e-3
    saved = FrameMemory.from_state(begun.frame_memory.state(), 2)
    for level, other, stride in zip(saved.levels, begun.frame_memory.levels, (2, 4, 8, 16), strict=True):
        assert level.grid.stride == other.grid.stride == stride and level.grid.batch_size == 2
    with torch.no_grad():
        loaded = network(**second, frame_memory=saved)
    assert torch.equal(loaded.masks_queries_logits, gone_on[0].masks_queries_logits)


def test_gradients_flow_through_the_memory(small_config, make_batch):
    torch.manual_seed(2)
    model = with_effect(BiFusionForInstanceSegmentation(online_config(small_config))).train()
    memory, batches = FrameMemory(), [make_batch(seed=seed) for seed in range(2)]
    colors = batches[0]["point_colors"].clone().requires_grad_()
    outputs = []
    for batch in ({**batches[0], "point_colors": colors}, batches[1]):
        labels = ("mask_labels", "class_labels", "semantic_labels")
        outputs.append(model(**{k: v for k, v in batch.items() if k not in labels}, frame_memory=memory))
        memory = outputs[-1].frame_memory
    outputs[1].masks_queries_logits.square().mean().backward()
    assert colors.grad.abs().max() > 0
    assert not any(tensor.requires_grad for tensor in memory.state().values())
    detached = memory.detach()
    assert type(memory.levels) is type(detached.levels) is tuple
    assert [level.features.grad_fn for level in detached.levels] == [None] * len(memory.levels) != []
    for level, kept in zip(memory.levels, detached.levels, strict=True):
        assert kept.grid is level.grid and torch.equal(kept.features, level.features)


def test_a_memory_needs_adapters(small_config, make_batch):
    model = BiFusionForInstanceSegmentation(small_config("none")).eval()
    batch = {k: v for k, v in make_batch().items() if k not in ("mask_labels", "class_labels", "semantic_labels")}
    with pytest.raises(ValueError, match="the network has 0 frame adapters"):
        model(**batch, frame_memory=FrameMemory())


def test_a_memory_of_another_network_is_refused_and_that_of_one_frame_is_the_usual(network, make_batch):
    with torch.no_grad():
        memory = network(**inputs(make_batch((80,))), frame_memory=FrameMemory()).frame_memory
        again = FrameMemory.from_state(memory.state())
        assert [level.grid.batch_size for level in again.levels] == [1] * 4 and type(again.levels) is tuple
        with pytest.raises(ValueError, match="frame_memory has 3 levels; the network has 4 frame adapters"):
            network(**inputs(make_batch((80,))), frame_memory=FrameMemory(memory.levels[:3]))


def test_boxes_as_the_description_has_them(network, make_batch):
    batch = inputs(make_batch())
    normed = []
    hook = network.decoder.out_norm.register_forward_hook(lambda *call: normed.append(call[2]))
    with torch.no_grad():
        outputs = network(**batch)
    hook.remove()
    head = network.decoder.box_head
    regression = head.out(torch.relu(head.hidden(normed[-1])))
    for sample in range(2):
        for query, superpoint in enumerate(outputs.query_superpoints[sample].tolist()):
            if superpoint < 0:
                continue
            centre = batch["points"][sample][batch["superpoint_ids"][sample] == superpoint].mean(dim=0)
            middle, size = centre + regression[sample, query, :3], regression[sample, query, 3:].exp()
            expected = torch.cat([middle - size / 2, middle + size / 2])
            torch.testing.assert_close(outputs.pred_boxes[sample, query], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_merge_embeddings_as_the_description_has_them(norm):
    torch.manual_seed(3)
    head = MergeHead(6, norm).double().eval()
    if norm == "batch":
        for part in (head.hidden_norm, head.out_norm):
            torch.nn.init.normal_(part.running_mean)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    queries, mask = torch.randn(2, 4, 6, dtype=torch.float64), torch.tensor([[True] * 4, [True, False, True, False]])
    found = head(queries, mask)

    def normed(part, x):
        if norm == "layer":
            centred = x - x.mean()
            return centred / torch.sqrt(centred.square().mean() + 1e-5) * part.weight + part.bias
        return (x - part.running_mean) / torch.sqrt(part.running_var + 1e-5) * part.weight + part.bias

    for sample, query in np.ndindex(2, 4):
        if not mask[sample, query]:
            assert not found[sample, query].any()
            continue
        hidden = torch.relu(normed(head.hidden_norm, head.hidden(queries[sample, query])))
        out = normed(head.out_norm, head.out(hidden))
        torch.testing.assert_close(found[sample, query], out / out.square().sum().sqrt(), rtol=0, atol=1e-10)
    # Padding changes no batch statistics.
    head.train()
    changed = torch.where(mask[..., None], queries, 100.0)
    torch.testing.assert_close(head(queries, mask), head(changed, mask))


def test_a_network_without_the_heads_gives_neither(small_config, make_batch):
    model = BiFusionForInstanceSegmentation(small_config("none")).eval()
    batch = {k: v for k, v in make_batch().items() if k not in ("mask_labels", "class_labels", "semantic_labels")}
    with torch.no_grad():
        outputs = model(**batch)
    assert outputs.pred_boxes is None and outputs.merge_embeddings is None and outputs.frame_memory is None
    assert not BiFusionConfig.from_preset("sv3d").use_box_head
