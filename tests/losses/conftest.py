from dataclasses import dataclass

import numpy as np
import pytest
import torch

from bifusion_hf.losses import BatchTargets, QueryHeadOutput, batch_targets


LEVELS = ("superpoint", "superpoint", "point", "point")


def pad_rows(rows, value):
    """Stacks arrays [n_i, ...] (all axes may differ) into one tensor, padded with `value`."""
    rows = [torch.as_tensor(row) for row in rows]
    shape = [max(sizes) for sizes in zip(*(row.shape for row in rows), strict=True)]
    padded = torch.full((len(rows), *shape), value, dtype=rows[0].dtype)
    for sample, row in enumerate(rows):
        padded[(sample, *(slice(size) for size in row.shape))] = row
    return padded


@dataclass
class ReferenceBatch:
    data: dict
    heads: list[QueryHeadOutput]
    semantic_logits: torch.Tensor
    targets: BatchTargets
    query_superpoints: torch.Tensor
    query_mask: torch.Tensor


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
        query_superpoints >= 0,
    )


@pytest.fixture
def reference_batch(reference):
    def load(name, padding=0.0):
        return load_reference_batch(reference / f"losses_{name}.npz", padding)

    return load
