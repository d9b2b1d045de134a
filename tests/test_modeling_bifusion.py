"""The model as a whole: shapes, batching, saving, what must and must not influence what."""

import pytest
import torch
from transformers import AutoModel, AutoModelForInstanceSegmentation

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionModel
from bifusion_hf.data.collator import FrameFeatures
from bifusion_hf.layers import encoder, frame_batch
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS, FrameBatch
from bifusion_hf.layers.query_decoder import select_queries
from bifusion_hf.sparse import voxelize


FUSIONS = ["none", "lite_gate", "enhanced_gate", "residual"]
LABELS = ("mask_labels", "class_labels", "semantic_labels")


def build(config, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = BiFusionForInstanceSegmentation(config).to(dtype).eval()
    with torch.no_grad():
        # Away from zero initialisations and untouched statistics, so that every part shows in the output.
        for name, parameter in model.named_parameters():
            if "residual_out" in name or "modulation" in name:
                parameter.normal_(std=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model


def assert_same(found, expected):
    """Equal but for the last bits, which a matrix product may give otherwise where memory lies otherwise."""
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def cut(batch, sample, length):
    """One sample of a padded batch, without its padding."""
    result = {}
    for name, value in batch.items():
        value = value[sample]
        if name in ("pixel_values", "camera_rotations"):
            result[name] = value.unsqueeze(0)
        elif name == "mask_labels":
            result[name] = [value[:, :length]]
        elif name == "class_labels":
            result[name] = [value]
        else:
            result[name] = value[:length].unsqueeze(0)
    return result


def to_dtype(batch, dtype):
    return {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() and name != "points" else value
        for name, value in batch.items()
    }


@pytest.mark.parametrize("fusion_type", FUSIONS)
def test_output_contract(fusion_type, small_config, make_batch):
    config = small_config(fusion_type, num_labels=4)
    batch = make_batch(classes=4)
    output = build(config)(**batch)
    batch_size, num_points = batch["point_mask"].shape
    num_superpoints = int(batch["superpoint_ids"].max()) + 1
    assert output.class_queries_logits.shape == (batch_size, num_superpoints, 5)
    assert output.masks_queries_logits.shape == (batch_size, num_superpoints, num_points)
    assert output.semantic_queries_logits.shape == (batch_size, num_superpoints, 201)
    assert output.point_features.shape == (batch_size, num_points, config.hidden_size)
    assert output.superpoint_features.shape == (batch_size, num_superpoints, config.hidden_size)
    assert output.query_mask.sum(1).tolist() == [len(ids[ids >= 0].unique()) for ids in batch["superpoint_ids"]]
    assert [aux["masks_queries_logits"].shape[2] for aux in output.auxiliary_logits] == [
        num_superpoints,
        num_superpoints,
        num_points,
    ]
    assert set(output.loss_dict) >= {"loss_cls", "loss_mask", "loss_dice", "loss_sem", "loss_clip", "loss_spatial"}
    assert torch.isfinite(output.loss)
    if fusion_type == "none":
        assert output.fusion_weights is None
    else:
        weights = output.fusion_weights.squeeze(2)
        assert (weights[~batch["point_visible"]] == 0).all()
        assert ((weights > 0) & (weights < 1))[batch["point_visible"]].all()


@pytest.mark.parametrize("fusion_type", FUSIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_padding_and_batch_mates_change_nothing(fusion_type, dtype, tolerance, small_config, make_batch):
    model = build(small_config(fusion_type), dtype=dtype)
    batch = to_dtype(make_batch((600, 450)), dtype)
    with torch.no_grad():
        together = model(**batch)
        for sample, length in enumerate((600, 450)):
            alone = model(**cut(batch, sample, length))
            num_queries = alone.query_mask.shape[1]
            pairs = {
                "class_queries_logits": together.class_queries_logits[sample, :num_queries],
                "masks_queries_logits": together.masks_queries_logits[sample, :num_queries, :length],
                "semantic_queries_logits": together.semantic_queries_logits[sample, :num_queries],
                "point_features": together.point_features[sample, :length],
                "superpoint_features": together.superpoint_features[sample, :num_queries],
            }
            for name, value in pairs.items():
                expected = alone[name][0]
                assert (value - expected).abs().max() <= tolerance * expected.abs().max(), name


def test_values_at_padding_are_never_read(small_config, make_batch):
    model = build(small_config("residual"))
    batch = make_batch((600, 450))
    dirty = dict(batch)
    for name in ("points", "point_colors", "point_pixels"):
        dirty[name] = torch.where(batch["point_mask"].unsqueeze(2), batch[name], torch.nan)
    with torch.no_grad():
        clean_output, dirty_output = model(**batch), model(**dirty)
    mask = batch["point_mask"].unsqueeze(1) & clean_output.query_mask.unsqueeze(2)
    assert_same(dirty_output.masks_queries_logits[mask], clean_output.masks_queries_logits[mask])
    assert_same(dirty_output.loss, clean_output.loss)


def test_no_gradient_passes_through_padding(small_config, make_batch):
    model = build(small_config("residual")).train()
    model(**make_batch((600, 300)), query_seeds=torch.tensor([1, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("fusion_type", ["none", "lite_gate", "residual"])
def test_save_and_load_give_the_same_numbers(fusion_type, small_config, make_batch, tmp_path):
    model = build(small_config(fusion_type, num_labels=3))
    model.set_training_progress(7, 20)
    model.save_pretrained(tmp_path)
    batch = make_batch(classes=3)
    with torch.no_grad():
        expected = model(**batch)
    for loaded in (
        BiFusionForInstanceSegmentation.from_pretrained(tmp_path),
        AutoModelForInstanceSegmentation.from_pretrained(tmp_path),
    ):
        assert type(loaded) is BiFusionForInstanceSegmentation
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name
        with torch.no_grad():
            assert_same(loaded(**batch).masks_queries_logits, expected.masks_queries_logits)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is BiFusionModel
    inputs = {name: value for name, value in batch.items() if name not in LABELS}
    with torch.no_grad():
        assert_same(base(**inputs).superpoint_features, expected.superpoint_features)


def test_missing_weights_are_initialised_not_left_as_garbage(small_config, tmp_path):
    """from_pretrained builds on the meta device: what no file holds must come from `_init_weights`."""
    config = small_config("residual")
    model = BiFusionForInstanceSegmentation.from_pretrained(None, config=config, state_dict={})
    for name, value in list(model.named_parameters()) + list(model.named_buffers()):
        assert torch.isfinite(value.float()).all(), name
    assert model.model.training_progress.update.item() == -1
    encoding = model.model.encoder.geometric_encoding
    assert torch.all(encoding.log_frequencies.diff() > 0)
    assert model.model.encoder.fusion.residual_out.weight.abs().max() == 0
    assert model.model.encoder.fusion.scale.item() == pytest.approx(config.projection_dim**0.5)


def test_parts_that_must_start_neutral_do(small_config):
    """transformers runs its own initialisers after the constructors of the parts."""
    config = small_config("lite_gate", use_tiny_sa_2d=True, use_tiny_sa_3d=True)
    for model in (
        BiFusionForInstanceSegmentation(config),
        BiFusionForInstanceSegmentation.from_pretrained(None, config=config, state_dict={}),
    ):
        encoder = model.model.encoder
        for layer in (encoder.film.modulation, encoder.tiny_sa_2d.out, encoder.tiny_sa_3d.out):
            assert not layer.weight.any() and not layer.bias.any()


def test_half_precision_inputs_of_the_processor_move_no_point(small_config, make_batch):
    """`inputs.to(device, dtype)`, the usual line of transformers, gives what float32 inputs give."""
    batch = {name: value for name, value in make_batch().items() if not name.endswith("_labels")}
    half = build(small_config("residual"), dtype=torch.bfloat16)
    cast = FrameFeatures(dict(batch)).to("cpu", torch.bfloat16)
    assert cast["pixel_values"].dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(half(**cast).masks_queries_logits, half(**batch).masks_queries_logits)


@pytest.mark.parametrize("name", ["points", "point_pixels", "camera_rotations"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_positions_in_half_precision_are_told(name, dtype, small_config, make_batch, monkeypatch):
    told = []
    monkeypatch.setattr(frame_batch.logger, "warning_once", told.append)
    batch, model = make_batch(), build(small_config("residual"), dtype=dtype)
    with torch.no_grad():
        model(**batch)
        assert not told
        model(**{**batch, name: batch[name].to(torch.float16)})
    (message,) = told
    assert message.startswith(f"{name} has dtype torch.float16") and "expected torch.float32" in message


def test_voxels_are_the_same_at_every_precision_of_the_network(small_config, make_batch, monkeypatch):
    """For points on the faces of voxels too, which float64 would put on the other side."""
    batch, grids = make_batch(), []
    voxelize = encoder.voxelize
    monkeypatch.setattr(encoder, "voxelize", lambda *args: grids.append(voxelize(*args)) or grids[-1])
    config = small_config("none")
    batch["points"] = (batch["points"] / config.voxel_size).round() * config.voxel_size
    model = build(config)
    with torch.no_grad():
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            model.to(dtype)(**batch)
    assert all(torch.equal(grid.coordinates, grids[0].coordinates) for grid in grids) and len(grids) == 3
    points, sample = batch["points"][batch["point_mask"]], batch["point_mask"].nonzero()[:, 0]
    wide = voxelize(points.double(), sample, config.voxel_size, 2)
    assert not torch.equal(wide.coordinates, grids[0].coordinates)


def test_half_precision_models_run(small_config, make_batch):
    batch = make_batch()
    full = build(small_config("residual"))
    half = build(small_config("residual"), dtype=torch.bfloat16)
    with torch.no_grad():
        expected, output = full(**batch), half(**batch)
    assert output.masks_queries_logits.dtype == torch.bfloat16
    error = (output.superpoint_features.float() - expected.superpoint_features).abs().max()
    assert error < 0.1 * expected.superpoint_features.abs().max()


def test_residual_starts_as_the_3d_network(small_config, make_batch):
    torch.manual_seed(0)
    fused = BiFusionForInstanceSegmentation(small_config("residual")).eval()
    baseline = BiFusionForInstanceSegmentation(small_config("none")).eval()
    missing, unexpected = baseline.load_state_dict(fused.state_dict(), strict=False)
    assert not missing and unexpected
    batch = make_batch()
    with torch.no_grad():
        assert_same(fused(**batch).masks_queries_logits, baseline(**batch).masks_queries_logits)


def test_gate_is_held_during_warm_up_and_live_afterwards(small_config, make_batch, tmp_path):
    model = build(small_config("lite_gate", gate_warmup_steps=5))
    batch = make_batch()

    def weights(model):
        with torch.no_grad():
            return model(**batch).fusion_weights.squeeze(2)[batch["point_visible"]]

    assert weights(model).std() > 0, "a model that was never told its progress has a live gate"
    for update, held in ((0, True), (4, True), (5, False), (9, False)):
        model.set_training_progress(update, 10)
        for mode in (model.train(), model.eval()):
            values = weights(mode)
            assert bool((values == 0.5).all()) == held
    model.set_training_progress(3, 10)
    model.save_pretrained(tmp_path)
    loaded = BiFusionForInstanceSegmentation.from_pretrained(tmp_path)
    assert (weights(loaded) == 0.5).all()
    with pytest.raises(ValueError, match="update"):
        model.set_training_progress(11, 10)


def test_query_choice_is_reproducible_and_covers_the_range():
    mask = torch.arange(40) < torch.tensor([40, 17]).unsqueeze(1)
    everything = select_queries(mask, None)
    assert everything[0].tolist() == list(range(40)) and everything[1, 17:].eq(-1).all()
    seeds = torch.tensor([3, 4])
    assert torch.equal(select_queries(mask, 0.5, seeds), select_queries(mask, 0.5, seeds))
    sizes = {int((select_queries(mask, 0.5, torch.tensor([s, s]))[0] >= 0).sum()) for s in range(200)}
    assert min(sizes) >= 20 and max(sizes) <= 40 and len(sizes) > 15
    for queries, count in zip(select_queries(mask, 0.5, seeds), (40, 17), strict=True):
        chosen = queries[queries >= 0]
        assert len(chosen.unique()) == len(chosen) and chosen.max() < count


def test_loss_counts_replace_the_batch_own(small_config, make_batch):
    model = build(small_config("residual")).train()
    batch, seeds = make_batch(), torch.tensor([5, 6])
    counts = model.count_loss_samples(**batch, query_seeds=seeds)
    with torch.no_grad():
        own = model.eval()(**batch).loss_dict
        model.train()
        doubled = {name: 2 * count for name, count in counts.items()}
        state = {name: value.clone() for name, value in model.state_dict().items()}
        plain = model(**batch, query_seeds=seeds).loss_dict
        model.load_state_dict(state)
        halved = model(**batch, query_seeds=seeds, loss_counts=doubled).loss_dict
    for name, value in plain.items():
        assert halved[name] == pytest.approx(value.item() / 2, rel=1e-5, abs=1e-7), name
    assert own.keys() == plain.keys()
    with pytest.raises(ValueError, match="query_seeds"):
        model.count_loss_samples(**batch)


def test_outputs_are_recorded_on_request(small_config, make_batch):
    config = small_config("residual")
    model = build(config)
    model.set_attn_implementation("eager")
    batch = make_batch()
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == config.decoder_layers + 1
    assert len(output.attentions) == config.decoder_layers
    weights = output.attentions[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_sdpa_and_eager_agree(small_config, make_batch):
    model, batch = build(small_config("residual")), make_batch()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        eager = model(**batch)
        model.set_attn_implementation("sdpa")
        fused = model(**batch)
    real = eager.query_mask
    torch.testing.assert_close(
        eager.masks_queries_logits[real], fused.masks_queries_logits[real], rtol=1e-4, atol=1e-5
    )


def test_gradient_checkpointing_gives_the_same_gradients(small_config, make_batch):
    batch, seeds = make_batch(), torch.tensor([1, 2])
    gradients, buffers = [], []
    for options in (None, {}, {"use_reentrant": True}):
        model = build(small_config("residual")).train()
        if options is not None:
            model.gradient_checkpointing_enable(options or None)
        model(**batch, query_seeds=seeds).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        buffers.append(dict(model.named_buffers()))
    for others, statistics in zip(gradients[1:], buffers[1:], strict=True):
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(others[name], gradient, msg=name)
        # What is computed twice counts once.
        for name, buffer in buffers[0].items():
            assert torch.equal(statistics[name], buffer), name


def test_gradient_checkpointing_covers_the_unet(small_config, make_batch):
    """A block of the U-Net keeps its input, and nothing of what is computed within."""
    batch, sizes = make_batch(), []
    for checkpointing in (False, True):
        unet = build(small_config("none")).train()
        if checkpointing:
            unet.gradient_checkpointing_enable()
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.setdefault(tensor.data_ptr(), tensor), lambda tensor: tensor
        ):
            frames = FrameBatch(**{name: batch[name] for name in FORWARD_INPUTS})
            grid = voxelize(frames.real(frames.points), frames.sample, 0.05, frames.batch_size)
            unet.model.encoder.point_encoder(grid.mean(frames.real(frames.point_colors)), grid)
        # Features of voxels; the kernels are kept either way.
        sizes.append(sum(tensor.numel() for tensor in kept.values() if tensor.ndim == 2))
    assert sizes[1] < 0.6 * sizes[0]


BAD_INPUTS = {
    "pixel_values": lambda b: b.update(pixel_values=None),
    "point_pixels": lambda b: b.update(point_pixels=b["point_pixels"][:, :-1]),
    "camera_rotations": lambda b: b.pop("camera_rotations"),
    "points": lambda b: b.update(points=b["points"][0]),
    "point_mask": lambda b: b.update(point_mask=b["point_mask"].long()),
    "superpoint_ids": lambda b: b.update(superpoint_ids=torch.where(b["point_mask"], b["superpoint_ids"] * 2, -1)),
    "patch": lambda b: b.update(pixel_values=b["pixel_values"][..., :-1]),
    "class_labels": lambda b: b.update(class_labels=None),
}


def test_a_score_threshold_changes_masks_of_improbable_queries_alone(small_config, make_batch):
    model, batch = build(small_config("residual", num_labels=4)).eval(), make_batch(classes=4)
    for name in ("mask_labels", "class_labels", "semantic_labels"):
        batch.pop(name, None)
    with torch.no_grad():
        every = model(**batch)
        probable = every.class_queries_logits.softmax(-1)[..., :-1].amax(-1)
        threshold = float(probable.median())
        found = model(**batch, score_threshold=threshold)
    below = probable <= threshold
    assert 0 < below.sum() < below.numel()
    assert (found.masks_queries_logits[below] == -torch.inf).all()
    torch.testing.assert_close(found.masks_queries_logits[~below], every.masks_queries_logits[~below])
    for name in ("class_queries_logits", "semantic_queries_logits", "point_features"):
        assert torch.equal(found[name], every[name])


def test_the_losses_need_all_masks(small_config, make_batch):
    with pytest.raises(ValueError, match="score_threshold is 0.5 beside mask_labels"):
        build(small_config("residual"))(**make_batch(), score_threshold=0.5)


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_named(name, small_config, make_batch):
    batch = dict(make_batch())
    BAD_INPUTS[name](batch)
    with pytest.raises(ValueError, match=name):
        build(small_config("residual"))(**batch)
