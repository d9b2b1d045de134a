"""What should train trains, what is frozen does not, and no frame makes a loss or a gradient infinite."""

import re

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation
from bifusion_hf.layers.fusion import SqueezeExcite
from bifusion_hf.presets import PRESETS
from bifusion_hf.recipe.arguments import OptimizerArguments, TrainArguments
from bifusion_hf.sparse import voxelize
from bifusion_hf.training.audit import EXEMPTIONS
from bifusion_hf.training.freezing import TOWER, freeze, frozen_prefixes, train_mode
from bifusion_hf.training.metrics import read_metrics
from bifusion_hf.training.optimization import build_optimizer
from bifusion_hf.training.trainer import BiFusionTrainer


FRACTION = 1e-6
NARROW_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    # The usual 0.02 suits a width of 768.
    "initializer_range": 0.2,
}


def narrow(preset, **changes):
    """A preset with all its options, but narrow layers."""
    options = PRESETS[preset]
    widths = {
        "voxel_size": 0.05,
        "projection_dim": 64,
        "projection_hidden_size": 16,
        "hidden_size": 12 if options["fusion_type"] in ("none", "residual") else 64,
        "decoder_size": 16,
        "decoder_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "point_config": {"stem_channels": 8, "planes": [8, 8, 12, 12, 12, 12, 12, 12], "blocks": [1] * 8},
    }
    if "vision_config" in options:
        widths["vision_config"] = {**options["vision_config"], **NARROW_TOWER}
    point_config = {**widths["point_config"], **changes.pop("point_config", {})}
    return BiFusionConfig.from_preset(preset, **{**widths, "point_config": point_config, **changes})


def tower(model_type, **options):
    return {"model_type": model_type, "num_hidden_layers": 4, **NARROW_TOWER, **options}


CONVOLUTIONAL = {"hidden_sizes": [8, 16], "depths": [1, 1]}
CONVNEXT = {**CONVOLUTIONAL, "layer_scale_init_value": 1.0}
UNFROZEN = {"freeze_tower_early_layers": False, "freeze_tower_embeddings": False}
CASES = {
    **{name: (name, {}) for name in PRESETS},
    "no FiLM": ("simple", {"use_film": False}),
    "no FiLM, residual": ("residual", {"use_film": False}),
    "no spatial attention": ("full", {"use_spatial_attention": False}),
    "TinySA 2D": ("simple", {"use_tiny_sa_2d": True}),
    "TinySA 3D": ("simple", {"use_tiny_sa_3d": True}),
    "TinySA both, residual": ("residual", {"use_tiny_sa_2d": True, "use_tiny_sa_3d": True}),
    "TinySA 3D, no image": ("sv3d", {"use_tiny_sa_3d": True}),
    "frame adapters": ("sv3d", {"point_config": {"use_frame_adapters": True}}),
    "embeddings frozen": ("residual", {"freeze_tower_embeddings": True}),
    "blocks not frozen": ("full", {"freeze_tower_early_layers": False}),
    "nothing frozen": ("simple", UNFROZEN),
    "positive mode": ("simple", {"loss_config": {"consistency_loss_mode": "positive"}}),
    "positive mode, residual": ("residual", {"loss_config": {"consistency_loss_mode": "positive"}}),
    "negatives across the batch": ("full", {"loss_config": {"consistency_negatives_across_batch": True}}),
    "hard coverage gate": ("simple", {"loss_config": {"consistency_coverage_gate": "hard"}}),
    "no gradient of the consistency loss to the image": (
        "residual",
        {"loss_config": {"consistency_gradient_flow_ratio": 0.0}},
    ),
    "balance loss": ("full", {"loss_config": {"balance_loss_weight": 0.1}}),
    "semantic loss of the image": ("simple", {"loss_config": {"image_semantic_weight": 0.5}}),
    "semantic loss of the image, residual": ("residual", {"loss_config": {"image_semantic_weight": 0.5}}),
    "no consistency loss": ("residual", {"loss_config": {"consistency_loss_weight": 0.0}}),
    "only the baseline's losses": (
        "residual",
        {"loss_config": PRESETS["sv3d"]["loss_config"]},
    ),
    "class-aware": ("simple", {"num_labels": 198}),
    "SigLIP": ("simple", {"vision_config": tower("siglip_vision_model")}),
    "DINOv2": ("simple", {"vision_config": tower("dinov2", mlp_ratio=2)}),
    "DINOv2 with registers": ("residual", {"vision_config": tower("dinov2_with_registers", mlp_ratio=2)}),
    "DINOv3": ("simple", {"vision_config": tower("dinov3_vit", num_register_tokens=3)}),
    "ResNet": (
        "residual",
        {"vision_config": {"model_type": "resnet", "embedding_size": 8, **CONVOLUTIONAL}, **UNFROZEN},
    ),
    "ConvNeXt": ("simple", {"vision_config": {"model_type": "convnext", "num_stages": 2, **CONVNEXT}, **UNFROZEN}),
    "ViT": ("residual", {"vision_config": tower("vit")}),
    "DeiT": ("simple", {"vision_config": tower("deit")}),
}


def build(config, seed=0):
    """A model as training has it: frozen as configured, in train mode."""
    torch.manual_seed(seed)
    model = BiFusionForInstanceSegmentation(config)
    with torch.no_grad():
        # Masks that differ from place to place: a query whose mask leaves it one superpoint has nothing to weigh, and
        # the query and key projections of that attention then have no gradient.
        model.decoder.point_mask_proj.hidden.weight[:, :3].normal_(std=3)
        model.decoder.point_mask_proj.out.bias.zero_()
    freeze(model, frozen_prefixes(model))
    return train_mode(model)


def three_updates(model, make_batch, first_update):
    """Trains; returns for each parameter the largest share of the model's largest gradient, and the optimizer."""
    total = model.config.gate_warmup_steps + 10
    optimizer = build_optimizer(model, OptimizerArguments(learning_rate=5e-3, weight_decay=0.0))
    names = [name for name, _ in model.named_parameters()]
    shares = []
    for update in range(first_update, first_update + 3):
        model.set_training_progress(update - 1, total)
        batch = make_batch((1200, 900), seed=update, classes=model.config.num_labels)
        for sample, mask in enumerate(batch["point_mask"]):
            points = batch["points"][sample][mask]
            grid = voxelize(points, torch.zeros(len(points), dtype=torch.int64), model.config.voxel_size, 1)
            assert len(grid.coarser().coarser().coarser().coarser()) >= 8
        loss = model(**batch, query_seeds=torch.tensor([update, update + 7])).loss
        assert torch.isfinite(loss)
        loss.backward()
        norms = torch.stack([torch.zeros(()) if p.grad is None else p.grad.norm() for p in model.parameters()])
        shares.append(norms / norms.max())
        optimizer.step()
        optimizer.zero_grad()
    shares = torch.stack(shares).amax(0).tolist()
    return dict(zip(names, shares, strict=True)), optimizer


def exempt(name, *until):
    return any(e.until in until and not e.needs and re.search(e.pattern, name) for e in EXEMPTIONS)


@pytest.mark.parametrize("case", CASES)
def test_what_should_train_has_a_gradient_and_what_is_frozen_has_none(case, make_batch):
    preset, changes = CASES[case]
    model = build(narrow(preset, **changes))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    shares, optimizer = three_updates(model, make_batch, model.config.gate_warmup_steps + 1)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None and parameter not in optimizer.state and shares[name] == 0, name
            assert torch.equal(parameter, before[name]), name
        elif exempt(name, "always"):
            assert shares[name] <= FRACTION, f"{name} has a gradient, so it needs no exemption"
        else:
            assert shares[name] > FRACTION, f"{name} has {shares[name]:.1e} of the largest gradient"
            assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("preset", ["simple", "full", "residual"])
def test_during_warm_up_the_gate_alone_waits(preset, make_batch):
    model = build(narrow(preset))
    shares, _ = three_updates(model, make_batch, 1)
    for name, parameter in model.named_parameters():
        if exempt(name, "warmup"):
            assert shares[name] == 0, name
        elif parameter.requires_grad and not exempt(name, "always"):
            assert shares[name] > FRACTION, name


def test_frozen_parts_are_those_that_the_configuration_names():
    frozen = {}
    for preset in ("simple", "full", "residual", "tiny"):
        model = build(narrow(preset))
        names = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert all(name.startswith(TOWER) for name in names)
        frozen[preset] = {re.sub(r".*?(embeddings|pre_layrnorm|layers\.\d+).*", r"\1", name) for name in names}
    blocks = {"layers.0", "layers.1", "layers.2"}
    assert frozen["simple"] == {"embeddings", "pre_layrnorm"} | blocks
    assert frozen["full"] == frozen["residual"] == blocks
    assert frozen["tiny"] == set()


def test_the_loss_is_the_sum_of_its_weighted_terms(make_batch):
    model = build(narrow("full", loss_config={"balance_loss_weight": 0.1, "noview_similarity_threshold": 0.0}))
    model.set_training_progress(8, 10)
    with torch.no_grad():
        output = model(**make_batch((300, 200)), query_seeds=torch.tensor([1, 2]))
    assert output.loss.item() == pytest.approx(sum(value.item() for value in output.weighted_loss_dict.values()))
    for term, value in output.weighted_loss_dict.items():
        assert value.item() == pytest.approx(model.criterion.term_weight(term, 0.8) * output.loss_dict[term].item())
        assert value > 0, term


def test_the_semantic_loss_of_the_image_is_that_of_each_superpoints_visible_points(make_batch):
    model = build(narrow("residual", loss_config={"image_semantic_weight": 0.5}, freeze_tower_early_layers=False))
    batch = make_batch((300, 200))
    batch["semantic_labels"] = torch.where(batch["point_mask"], batch["superpoint_ids"] % 5, -100)
    losses = []
    with torch.no_grad():
        output = model(**batch, query_seeds=torch.tensor([1, 2]))
        inputs = {name: value for name, value in batch.items() if not name.endswith("_labels")}
        encoding = model.model(**inputs, output_encoding=True).encoding
        embeds = encoding.frames.pad(encoding.image_embeds)
        for sample in range(2):
            values = []
            for superpoint in range(int(batch["superpoint_ids"][sample].max()) + 1):
                inside = (batch["superpoint_ids"][sample] == superpoint) & batch["point_visible"][sample]
                if inside.any():
                    mean = embeds[sample, inside].mean(0) * embeds.shape[2] ** 0.5
                    scores = model.image_classifier(mean).log_softmax(0)
                    values.append(-scores[superpoint % 5])
            losses.append(torch.stack(values).mean())
    assert output.loss_dict["loss_image_sem"].item() == pytest.approx(sum(losses).item() / 2, rel=1e-4)


def test_the_semantic_loss_of_the_image_teaches_the_tower_past_gate_and_residual_matrix(make_batch):
    model = build(narrow("residual", loss_config={"image_semantic_weight": 0.5}, freeze_tower_early_layers=False))
    output = model(**make_batch((300, 200)), query_seeds=torch.tensor([1, 2]))
    output.loss_dict["loss_image_sem"].backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert "model.encoder.image_encoder.vision_model.embeddings.patch_embedding.weight" in taught
    assert all(name.startswith(("model.encoder.image_encoder.", "image_classifier.")) for name in taught)


def test_the_classifier_of_the_image_is_there_for_its_loss_alone():
    assert BiFusionForInstanceSegmentation(narrow("residual")).image_classifier is None


def test_squeeze_units_start_active():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(500, 256), dim=1)
    for seed in range(20):
        torch.manual_seed(seed)
        module = SqueezeExcite(256)
        for mean in (features.mean(0), features[0]):
            assert (module.squeeze(mean) > 0).float().mean() > 0.75


def test_towers_that_need_more_than_an_image_are_refused():
    with pytest.raises(ValueError, match="siglip2_vision_model.*pixel_attention_mask"):
        BiFusionForInstanceSegmentation(narrow("simple", vision_config=tower("siglip2_vision_model")))


# Warm-up in the loop


class Rooms(torch.utils.data.Dataset):
    """One random room for each row."""

    def __init__(self, make_batch):
        self.make_batch = make_batch

    def __len__(self):
        return 4

    def __getitem__(self, key):
        epoch, row = key
        return {**self.make_batch((300,), seed=10 * epoch + row), "query_seeds": torch.tensor([row])}


def collate(samples):
    batch = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        batch[name] = torch.cat(values) if torch.is_tensor(first) else [item for value in values for item in value]
    return batch


def train(output_dir, config, make_batch, batch_size, accumulation):
    for state in (AcceleratorState, GradientState):
        state._reset_state(*([True] if state is AcceleratorState else []))
    torch.set_num_threads(1)
    arguments = TrainArguments.from_dict(
        {
            "output_dir": str(output_dir),
            "data": {"num_workers": 0},
            "training": {"batch_size": batch_size, "accumulation": accumulation, "epochs": 3},
            "logging": {"progress_bar": False, "every_updates": 1},
        }
    )
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(config)
    BiFusionTrainer(arguments, model, None, Rooms(make_batch), collate).train()


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(4, 1, 1), (1, 4, 1), (1, 2, 2)])
def test_warm_up_counts_updates_not_batches(batch_size, accumulation, processes, small_config, make_batch, tmp_path):
    arguments = (tmp_path, small_config("lite_gate", gate_warmup_steps=2), make_batch, batch_size, accumulation)
    if processes == 1:
        train(*arguments)
    else:
        debug_launcher(train, arguments, num_processes=processes)
    lines = read_metrics(tmp_path / "metrics.jsonl")
    held = [line["alpha_mean"] == 0.5 and line["alpha_std"] == 0 for line in lines if "alpha_mean" in line]
    assert held == [True, True, False]
    loaded = BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "final")
    assert loaded.model.training_progress.update == loaded.model.training_progress.total == 3


# Degenerate inputs


def no_visible_point(batch):
    batch["point_visible"] = torch.zeros_like(batch["point_visible"])


def one_sample_without_visible_points(batch):
    batch["point_visible"] = batch["point_visible"].clone()
    batch["point_visible"][0] = False


def everything_visible(batch):
    batch["point_visible"] = batch["point_mask"].clone()


def no_instance(batch):
    batch["mask_labels"] = [masks[:0] for masks in batch["mask_labels"]]
    batch["class_labels"] = [labels[:0] for labels in batch["class_labels"]]


def empty_instances(batch):
    batch["mask_labels"] = [torch.zeros_like(masks) for masks in batch["mask_labels"]]


def one_superpoint(batch):
    batch["superpoint_ids"] = batch["superpoint_ids"].clamp(max=0)


def a_superpoint_for_each_point(batch):
    order = batch["point_mask"].cumsum(1) - 1
    batch["superpoint_ids"] = torch.where(batch["point_mask"], order, -1)


def all_semantics_ignored(batch):
    batch["semantic_labels"] = torch.full_like(batch["semantic_labels"], -100)


def no_semantics(batch):
    batch["semantic_labels"] = None


def tied_queries(batch):
    """Every point twice, the second time in a superpoint of its own: each query has an exact twin."""
    ids = batch["superpoint_ids"]
    twins = torch.where(batch["point_mask"], ids + ids.amax(1, keepdim=True) + 1, -1)
    for name, value in batch.items():
        if torch.is_tensor(value) and value.shape[:2] == ids.shape:
            batch[name] = torch.cat([value, twins if name == "superpoint_ids" else value], dim=1)
    batch["mask_labels"] = [torch.cat([masks, masks], dim=1) for masks in batch["mask_labels"]]


def one_colour(batch):
    batch["point_colors"] = torch.zeros_like(batch["point_colors"])
    batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])


def a_single_point(batch):
    first = torch.zeros_like(batch["point_mask"])
    first[:, 0] = True
    batch["point_mask"], batch["point_visible"] = first, first.clone()
    batch["superpoint_ids"] = torch.where(first, 0, -1)
    batch["mask_labels"] = [first[:1].clone() for _ in batch["mask_labels"]]
    batch["class_labels"] = [labels[:1] for labels in batch["class_labels"]]


def everything_at_once(batch):
    for change in (no_visible_point, no_instance, one_superpoint, all_semantics_ignored, one_colour):
        change(batch)


DEGENERATE = [
    no_visible_point,
    one_sample_without_visible_points,
    everything_visible,
    no_instance,
    empty_instances,
    one_superpoint,
    a_superpoint_for_each_point,
    all_semantics_ignored,
    no_semantics,
    tied_queries,
    one_colour,
    a_single_point,
    everything_at_once,
]


@pytest.mark.parametrize("preset", ["sv3d", "full", "residual"])
@pytest.mark.parametrize("change", DEGENERATE, ids=lambda change: change.__name__)
def test_degenerate_input_gives_finite_loss_and_gradients(preset, change, make_batch):
    options = {} if preset == "sv3d" else {"loss_config": {"balance_loss_weight": 0.1}, "use_tiny_sa_2d": True}
    model = build(narrow(preset, use_tiny_sa_3d=True, min_query_fraction=1.0, **options))
    model.set_training_progress(model.config.gate_warmup_steps, model.config.gate_warmup_steps + 10)
    batch = make_batch((90, 60))
    change(batch)
    output = model(**batch, query_seeds=torch.tensor([1, 2]))
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(value) for value in output.loss_dict.values())
    output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    # DistributedDataParallel waits for every parameter in every update.
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
