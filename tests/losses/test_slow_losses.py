"""The losses of a whole network in training against slow ones, and what they become by weights and progress."""

import pytest
import torch
from random_weights import random_weights
from slow_losses import slow_losses

from bifusion_hf import BiFusionForInstanceSegmentation


POINT_CONFIG = {"stem_channels": 4, "planes": [4, 4, 8, 8, 8, 8, 8, 12], "blocks": [1] * 8, "stem_kernel_size": 3}
# Weights that no other term has, so that none can stand for another.
WEIGHTS = {
    "loss_cls": ("class_weight", 0.3),
    "loss_mask": ("mask_weight", 1.1),
    "loss_dice": ("dice_weight", [0.2, 0.4, 0.6, 0.9]),
    "loss_sem": ("semantic_weight", 0.7),
    "loss_clip": ("consistency_loss_weight", 0.13),
    "loss_spatial": ("spatial_loss_weight", 0.17),
    "loss_noview": ("noview_loss_weight", 0.19),
    "loss_balance": ("balance_loss_weight", 0.23),
    "loss_image_sem": ("image_semantic_weight", 0.29),
}
# Updates of 100 done -> factors of the instance, semantic, consistency and auxiliary terms.
STAGES = {20: (0.8, 0.75, 0.5, 1.0), 60: (1.0, 1.0, 1.0, 0.5), 90: (1.0, 1.1, 2.0, 0.25)}
GROUPS = {
    **dict.fromkeys(("loss_cls", "loss_mask", "loss_dice"), 0),
    **dict.fromkeys(("loss_sem", "loss_image_sem"), 1),
    "loss_clip": 2,
    **dict.fromkeys(("loss_spatial", "loss_noview", "loss_balance"), 3),
}
LEVELS = ("superpoint", "superpoint", "point", "point")
CASES = {
    "contrastive in the sample": {"mode": "contrastive", "across_batch": False, "coverage_gate": "soft"},
    "contrastive in the batch": {"mode": "contrastive", "across_batch": True, "coverage_gate": "none"},
    "positive, one sample hardly seen": {"mode": "positive", "across_batch": False, "coverage_gate": "hard"},
}


@pytest.fixture(scope="module")
def batch(make_batch):
    """One sample is seen more than the other; there are unlabelled points, and an instance that is nobody's."""
    batch = make_batch((160, 120), instances=3, classes=4, visible=0.7)
    batch["point_visible"][1] &= torch.arange(160) % 3 == 0
    batch["semantic_labels"][:, ::4] = -100
    batch["mask_labels"][0][2] = False
    batch["mask_labels"][0][2, 0] = True
    return batch


def run(small_config, batch, settings, update):
    config = small_config(
        "residual",
        point_config=POINT_CONFIG,
        voxel_size=0.1,
        num_labels=4,
        num_semantic_labels=6,
        min_query_fraction=1.0,
        loss_config={
            "no_object_weight": settings["no_object_weight"],
            "consistency_loss_mode": settings["mode"],
            "consistency_temperature": settings["temperature"],
            "consistency_negatives_across_batch": settings["across_batch"],
            "consistency_coverage_gate": settings["coverage_gate"],
            "consistency_coverage_threshold": settings["coverage_threshold"],
            "consistency_warmup": [0.5, 0.2],
            "noview_similarity_threshold": settings["noview_threshold"],
            "balance_target": settings["balance_target"],
            **dict(WEIGHTS.values()),
        },
    )
    model = BiFusionForInstanceSegmentation(config)
    model.load_state_dict(random_weights(model))
    model.double().train().set_training_progress(update, 100)
    encodings = []
    model.model.encoder.register_forward_hook(lambda *call: encodings.append(call[2]))
    outputs = model(**batch)
    return model, outputs, encodings[0]


@pytest.mark.parametrize(("case", "update"), list(zip(CASES, STAGES, strict=True)))
def test_every_term_equals_the_slow_one(small_config, batch, case, update):
    settings = {
        **CASES[case],
        "temperature": 0.3,
        "coverage_threshold": 0.5,
        "no_object_weight": 0.2,
        "noview_threshold": 0.9,
        "balance_target": 0.3,
        "voxel_size": 0.1,
        "num_classes": 6,
        "levels": LEVELS,
    }
    model, outputs, encoding = run(small_config, batch, settings, update)
    with torch.no_grad():
        expected = slow_losses(batch, outputs, encoding, settings, model.image_classifier)
    assert set(outputs.loss_dict) == set(outputs.weighted_loss_dict) == set(expected) == set(WEIGHTS)
    total = 0
    for term, slow in expected.items():
        per_head = torch.stack(slow) if isinstance(slow, list) else slow.reshape(1)
        assert per_head.sum() > 1e-3, f"{term} says nothing here"
        torch.testing.assert_close(outputs.loss_dict[term].detach(), per_head.sum(), msg=term)
        factor = STAGES[update][GROUPS[term]]
        if term == "loss_clip":
            # Its weight warms up from half of the updates on, for a fifth of them.
            factor *= min(max((update / 100 - 0.5) / 0.2, 0), 1)
        weighted = (torch.tensor(WEIGHTS[term][1]).double() * per_head).sum() * factor
        torch.testing.assert_close(outputs.weighted_loss_dict[term].detach(), weighted, msg=term)
        total = total + weighted
    torch.testing.assert_close(outputs.loss.detach(), total)
