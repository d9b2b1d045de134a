from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from bifusion_hf.configuration_bifusion import BiFusionLossConfig
from bifusion_hf.losses import BatchTargets, BiFusionCriterion, FusionOutput, QueryHeadOutput, batch_targets


INSTANCE_TERMS = ("loss_cls", "loss_mask", "loss_dice")
LEVELS = ("superpoint", "superpoint", "point", "point")


def pad_rows(rows, value):
    """Stacks arrays [n_i, ...] (all axes may differ) into one tensor, padded with `value`."""
    rows = [torch.as_tensor(row) for row in rows]
    shape = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    padded = torch.full((len(rows), *shape), value, dtype=rows[0].dtype)
    for sample, row in enumerate(rows):
        padded[(sample, *(slice(size) for size in row.shape))] = row
    return padded


class HeadByHead:
    """Losses of each head by itself."""

    def head_losses(self, criterion) -> dict[str, list[torch.Tensor]]:
        """Raw instance terms -> value of each head, from a criterion whose terms on features are off."""
        alone = [
            criterion([head], self.semantic_logits, self.targets, self.query_superpoints).loss_dict
            for head in self.heads
        ]
        return {term: [values[term].detach() for values in alone] for term in INSTANCE_TERMS}


@dataclass
class ReferenceBatch(HeadByHead):
    data: dict
    heads: list[QueryHeadOutput]
    semantic_logits: torch.Tensor
    targets: BatchTargets
    query_superpoints: torch.Tensor


def load_reference_batch(path, padding=0.0) -> ReferenceBatch:
    """A losses_*.npz as a padded batch of two; logits at padding are `padding`."""
    data = dict(np.load(path))
    both = range(2)

    def padded(name, value):
        return pad_rows([data[f"s{b}_{name}"] for b in both], value)

    superpoint_ids = padded("superpoints", -1).long()
    semantic = padded("semantic", 200).long()
    # The file in which all semantics are ignored says so on the superpoints only.
    semantic[torch.tensor([(data[f"s{b}_sp_sem_row"] == 200).all() for b in both])] = 200
    instance = padded("instance", -1)
    num_instances = [data[f"s{b}_sp_inst_masks"].shape[0] for b in both]
    targets = batch_targets(
        mask_labels=[instance[b] == torch.arange(num_instances[b])[:, None] for b in both],
        class_labels=[torch.arange(n) for n in num_instances],
        semantic_labels=torch.where(semantic == 200, -100, semantic),
        superpoint_ids=superpoint_ids,
        point_mask=superpoint_ids >= 0,
        num_superpoints=int(superpoint_ids.max()) + 1,
    )
    heads = [
        QueryHeadOutput(
            padded(f"cls_h{h}", padding).requires_grad_(), padded(f"masks_h{h}", padding).requires_grad_(), level
        )
        for h, level in enumerate(LEVELS)
    ]
    query_superpoints = padded("query_ids", -1).long()
    return ReferenceBatch(
        data,
        heads,
        padded("sem", padding).requires_grad_(),
        targets,
        query_superpoints,
    )


@pytest.fixture
def reference_batch(reference):
    def load(name, padding=0.0):
        return load_reference_batch(reference / f"losses_{name}.npz", padding)

    return load


@dataclass
class RandomBatch(HeadByHead):
    """A padded batch with random labels and leaf tensors as predictions; `call` runs a criterion on it."""

    heads: list[QueryHeadOutput]
    semantic_logits: torch.Tensor
    targets: BatchTargets
    query_superpoints: torch.Tensor
    fusion: FusionOutput
    labels: dict

    def call(self, criterion, **kwargs):
        return criterion(
            self.heads,
            self.semantic_logits,
            self.targets,
            self.query_superpoints,
            self.fusion,
            **kwargs,
        )

    def leaves(self) -> list[torch.Tensor]:
        features = ("features_3d", "features_2d", "fused_features", "fusion_weights", "voxel_features")
        features += ("image_semantic_logits",)
        logits = [logits for head in self.heads for logits in (head.class_logits, head.mask_logits)]
        return [*logits, self.semantic_logits, *(getattr(self.fusion, name) for name in features)]

    def sample(self, b: int) -> "RandomBatch":
        """Sample b alone, without the padding that its mates caused."""
        mask = self.targets.point_mask
        n, s, q = (
            int(mask[b].sum()),
            int(self.targets.superpoint_mask[b].sum()),
            int((self.query_superpoints[b] >= 0).sum()),
        )
        labels = {
            **self.labels,
            "mask_labels": [self.labels["mask_labels"][b][:, :n]],
            "class_labels": [self.labels["class_labels"][b]],
            "semantic_labels": self.labels["semantic_labels"][b : b + 1, :n],
            "superpoint_ids": self.labels["superpoint_ids"][b : b + 1, :n],
            "point_mask": mask[b : b + 1, :n],
            "num_superpoints": s,
        }
        rows = torch.full(mask.shape, -1)
        rows[mask] = torch.arange(int(mask.sum()))
        rows = rows[b, :n]
        fusion = self.fusion
        voxels = slice(10 * b, 10 * b + 10)
        inside = slice(30 * b, 30 * b + 30)
        return replace(
            self,
            heads=[
                QueryHeadOutput(
                    head.class_logits[b : b + 1, :q],
                    head.mask_logits[b : b + 1, :q, : s if head.level == "superpoint" else n],
                    head.level,
                )
                for head in self.heads
            ],
            semantic_logits=self.semantic_logits[b : b + 1, :q],
            targets=batch_targets(**labels),
            query_superpoints=self.query_superpoints[b : b + 1, :q],
            fusion=FusionOutput(
                point_visible=fusion.point_visible[b : b + 1, :n],
                features_3d=fusion.features_3d[rows],
                features_2d=fusion.features_2d[rows],
                fused_features=fusion.fused_features[rows],
                fusion_weights=fusion.fusion_weights[rows],
                voxel_features=fusion.voxel_features[voxels],
                voxel_samples=torch.zeros(10, dtype=torch.int64),
                neighbor_pairs=tuple(pair[inside] - 10 * b for pair in fusion.neighbor_pairs),
                image_semantic_logits=fusion.image_semantic_logits[b : b + 1, :s],
            ),
        )

    def cuda(self) -> "RandomBatch":
        return _to_gpu(self)


def _to_gpu(value):
    """`value` on the GPU, through lists, dicts, tuples and dataclasses."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, (list, tuple)):
        return type(value)(_to_gpu(item) for item in value)
    if isinstance(value, dict):
        return {key: _to_gpu(item) for key, item in value.items()}
    return type(value)(**_to_gpu(vars(value))) if hasattr(value, "__dataclass_fields__") else value


def random_sample(rng, num_points, num_superpoints, num_instances, num_labels):
    """Labels on the points of one sample; superpoints lie mostly, not wholly, in one instance."""
    superpoint_ids = rng.integers(num_superpoints, size=num_points)
    superpoint_ids[:num_superpoints] = np.arange(num_superpoints)
    of_superpoint = rng.integers(-1, num_instances, size=num_superpoints)
    noise = rng.integers(-1, num_instances, size=num_points)
    instance = np.where(rng.random(num_points) < 0.8, of_superpoint[superpoint_ids], noise)
    classes = rng.integers(num_labels, size=num_instances)
    semantic = np.where(instance >= 0, np.append(classes, 0)[instance] + 2, rng.choice([-100, 0, 1], size=num_points))
    return superpoint_ids, instance, classes, semantic


def make_batch(
    seed=0,
    sizes=((60, 8, 3), (45, 6, 2)),
    num_labels=1,
    query_fraction=0.8,
    visible_fraction=0.7,
    width=12,
    dtype=torch.float32,
) -> RandomBatch:
    """A batch of samples with (points, superpoints, instances) as in `sizes`."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    samples = [random_sample(rng, *size, num_labels) for size in sizes]
    superpoint_ids = pad_rows([sample[0] for sample in samples], -1)
    instance = pad_rows([sample[1] for sample in samples], -1)
    point_mask = superpoint_ids >= 0
    num_superpoints = max(size[1] for size in sizes)
    labels = {
        "mask_labels": [row == torch.arange(size[2])[:, None] for row, size in zip(instance, sizes, strict=True)],
        "class_labels": [torch.as_tensor(sample[2]) for sample in samples],
        "semantic_labels": pad_rows([sample[3] for sample in samples], -100),
        "superpoint_ids": superpoint_ids,
        "point_mask": point_mask,
        "num_superpoints": num_superpoints,
        "num_labels": num_labels,
    }
    queries = [rng.permutation(size[1])[: max(1, round(query_fraction * size[1]))] for size in sizes]
    query_superpoints = pad_rows(queries, -1)
    batch_size, num_queries = query_superpoints.shape

    def leaf(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    num_points = int(point_mask.sum())
    lengths = {"superpoint": num_superpoints, "point": point_mask.shape[1]}
    voxel_samples = torch.arange(batch_size).repeat_interleave(10)
    row = torch.arange(10 * batch_size).repeat_interleave(3)
    step = torch.tensor([1, 2, 5]).repeat(10 * batch_size)
    return RandomBatch(
        heads=[
            QueryHeadOutput(
                leaf(batch_size, num_queries, num_labels + 1), leaf(batch_size, num_queries, lengths[level]), level
            )
            for level in LEVELS
        ],
        semantic_logits=leaf(batch_size, num_queries, 201),
        targets=batch_targets(**labels),
        query_superpoints=query_superpoints,
        fusion=FusionOutput(
            point_visible=torch.as_tensor(rng.random(point_mask.shape) < visible_fraction),
            features_3d=leaf(num_points, width),
            features_2d=leaf(num_points, width),
            fused_features=leaf(num_points, width),
            fusion_weights=leaf(num_points, 1),
            voxel_features=leaf(10 * batch_size, width),
            voxel_samples=voxel_samples,
            neighbor_pairs=(row, row // 10 * 10 + (row + step) % 10),
            image_semantic_logits=leaf(batch_size, num_superpoints, 200),
        ),
        labels=labels,
    )


@pytest.fixture
def random_batch():
    return make_batch


# Terms on features that only some tests switch on.
OFF = dict.fromkeys(("consistency_loss_weight", "spatial_loss_weight", "noview_loss_weight"), 0.0)


@pytest.fixture
def make_criterion():
    """Factory: `make_criterion(num_labels, **settings)`; terms on features are off unless they have a weight."""

    def make(num_labels=1, **settings):
        return BiFusionCriterion(BiFusionLossConfig(**{**OFF, **settings}), num_labels)

    return make


@pytest.fixture
def every_term():
    """Weights under which every term is on."""
    return {
        "consistency_loss_weight": 0.1,
        "spatial_loss_weight": 0.02,
        "noview_loss_weight": 0.01,
        "balance_loss_weight": 0.1,
        "image_semantic_weight": 0.2,
        "noview_similarity_threshold": -1.0,
    }
