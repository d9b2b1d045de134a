"""A small network with the contract of `BiFusionForInstanceSegmentation`, and frames for it."""

from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from bifusion_hf.recipe.arguments import TrainArguments
from bifusion_hf.training.trainer import BiFusionTrainer


class StandInConfig(PreTrainedConfig):
    model_type = "training_standin"

    def __init__(self, width=8, dropout=0.0, gate_warmup_steps=0, detach=None, **kwargs):
        self.width = width
        self.dropout = dropout
        self.gate_warmup_steps = gate_warmup_steps
        self.detach = detach
        self.vision_config = None
        super().__init__(**kwargs)


@dataclass
class StandInOutput(ModelOutput):
    loss: torch.Tensor | None = None
    loss_dict: dict | None = None
    prediction: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None


class StandIn(PreTrainedModel):
    """Two loss terms with counts of their own: one for all samples, one for those that have a class."""

    config_class = StandInConfig
    config: StandInConfig

    def __init__(self, config):
        super().__init__(config)
        self.inner = nn.Linear(3, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.gate = nn.Linear(config.width, 1)
        self.regression = nn.Linear(config.width, 1)
        self.classes = nn.Linear(config.width, 4)
        self.register_buffer("progress", torch.tensor([-1, -1]))
        self.post_init()

    def set_training_progress(self, update, total):
        self.progress.copy_(torch.tensor([update, total]))

    def count_loss_samples(self, point_mask, class_labels, **unused):
        labelled = sum(len(labels) > 0 for labels in class_labels)
        counts = {"loss_points": len(point_mask), "loss_class": int(labelled)}
        return {name: torch.tensor(count, device=point_mask.device) for name, count in counts.items()}

    def forward(self, points, point_mask, point_visible=None, targets=None, class_labels=None, loss_counts=None):
        rows = points[point_mask].to(self.dtype)
        features = torch.zeros(*point_mask.shape, self.config.width, dtype=self.dtype, device=points.device)
        hidden = self.dropout(torch.relu(self.norm(self.inner(rows))))
        features = features.masked_scatter(point_mask.unsqueeze(2), hidden.to(self.dtype))
        held = 0 <= self.progress[0] < self.config.gate_warmup_steps
        gate = torch.sigmoid(self.gate(features))
        gate = torch.where(held, torch.full_like(gate, 0.5), gate)
        prediction = self.regression(features * gate).squeeze(2)
        counts = loss_counts or self.count_loss_samples(point_mask, class_labels)
        error = (prediction - targets).square() * point_mask
        per_sample = error.sum(1) / point_mask.sum(1)
        pooled = features.sum(1) / point_mask.sum(1, keepdim=True)
        logits = self.classes(pooled)
        sums = {"loss_points": per_sample.sum(), "loss_class": logits.sum() * 0}
        for sample, labels in enumerate(class_labels):
            if len(labels):
                sums["loss_class"] = sums["loss_class"] + nn.functional.cross_entropy(
                    logits[sample].expand(len(labels), -1), labels
                )
        losses = {name: value / counts[name].clamp(min=1) for name, value in sums.items()}
        if self.config.detach:
            losses[self.config.detach] = losses[self.config.detach].detach()
        return StandInOutput(
            loss=losses["loss_points"] + 0.5 * losses["loss_class"],
            loss_dict=losses,
            prediction=prediction,
            fusion_weights=gate,
        )


class StandInFrames(torch.utils.data.Dataset):
    """Random clouds of 5 to 12 points by (epoch, row); every third one has no class, and broken rows are skipped."""

    def __init__(self, length=16, poison=(), broken=()):
        self.length = length
        self.poison = poison
        self.broken = broken

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        epoch, row = key
        if row in self.broken:
            return None
        rng = np.random.default_rng([7, epoch, row])
        points = rng.normal(size=(int(rng.integers(5, 13)), 3)).astype(np.float32)
        if (epoch, row) in self.poison:
            points[0] = np.nan
        labels = [] if row % 3 == 0 else rng.integers(0, 4, size=row % 3).tolist()
        return {"points": points, "class_labels": labels, "frame_id": f"frame_{row}"}


def collate(samples):
    samples = [sample for sample in samples if sample is not None]
    if not samples:
        return None
    clouds = [torch.from_numpy(sample["points"]) for sample in samples]
    points = nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    sizes = torch.tensor([len(cloud) for cloud in clouds])
    mask = torch.arange(points.shape[1])[None] < sizes[:, None]
    return {
        "points": points,
        "point_mask": mask,
        "point_visible": mask,
        "targets": points.sum(2).sin(),
        "class_labels": [torch.tensor(sample["class_labels"], dtype=torch.int64) for sample in samples],
        "frame_ids": [sample["frame_id"] for sample in samples],
    }


def evaluate(model):
    """A number that depends on the weights and draws from no generator."""
    batch = send_to_device(collate([StandInFrames()[999, row] for row in range(4)]), model.device)
    inputs = {name: value for name, value in batch.items() if name != "frame_ids"}
    return {"all_ap": 0.1, "all_ap_50%": 1 / (1 + float(model(**inputs).loss_dict["loss_points"]))}


def recipe(output_dir, **sections):
    """A recipe of 12 updates: 3 epochs of 16 frames, 4 a step; evaluated and saved at the end alone."""
    values = {
        "output_dir": str(output_dir),
        "data": {"num_workers": 0},
        "optimizer": {"learning_rate": 1e-2},
        "training": {"epochs": 3, "batch_size": 4},
        "evaluation": {"every_epochs": 0},
        "checkpoints": {"every_epochs": 0},
        "logging": {"progress_bar": False, "every_updates": 1},
    }
    for name, section in sections.items():
        if isinstance(section, dict):
            values.setdefault(name, {}).update(section)
        else:
            values[name] = section
    return TrainArguments.from_dict(values)


class RecordingTrainer(BiFusionTrainer):
    """Keeps the loss terms and gradients before, and the weights after, each update."""

    def _step(self, sums, counts, audited):
        if not hasattr(self, "seen"):
            self.seen, self.weights = [], []
        gradients = [p.grad.clone() for p in self.network.parameters() if p.grad is not None]
        values = super()._step(sums, counts, audited)
        losses = {name: value for name, value in values.items() if name.startswith("loss")}
        self.seen.append((losses, gradients))
        self.weights.append({name: value.clone() for name, value in self.network.state_dict().items()})
        return values


def assert_same_updates(first, second, tolerance=1e-8):
    """Loss terms and gradients of two runs, relative to each tensor's largest entry."""
    assert len(first) == len(second) > 0
    for (losses, gradients), (other_losses, other_gradients) in zip(first, second, strict=True):
        assert losses.keys() == other_losses.keys()
        for name, value in losses.items():
            assert abs(value - other_losses[name]) <= tolerance * max(1, abs(value)), name
        for a, b in zip(gradients, other_gradients, strict=True):
            assert (a - b).abs().max() <= tolerance * max(1.0, float(a.abs().max()))


def make_trainer(
    arguments,
    *,
    dtype=torch.float32,
    frames=None,
    config=None,
    freeze_norm=False,
    cls=BiFusionTrainer,
):
    torch.manual_seed(0)
    model = StandIn(StandInConfig(**(config or {}))).to(dtype)
    if freeze_norm:
        model.norm.requires_grad_(False)
    return cls(arguments, model, None, frames or StandInFrames(), collate, evaluate=evaluate)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
