"""Every loss once more, with loops over samples, instances and superpoints, from what a network gives for a batch.

Written from docs/fusion.md and the description of ESAM's criterion, not from `bifusion_hf.losses`.
"""

import math

import torch
import torch.nn.functional as F


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class SlowSample:
    """One sample of a batch without its padding.

    Args:
        batch: Inputs and labels.
        index: Which sample.
        encoding: What the encoder gave: features of both branches and fused ones, gate weights, all of real points.
        num_labels: Instance labels.
    """

    def __init__(self, batch, index, encoding, num_labels):
        real = batch["point_mask"][index]
        own = batch["point_mask"].nonzero()[:, 0] == index
        self.points = batch["points"][index][real]
        self.ids = batch["superpoint_ids"][index][real]
        self.visible = batch["point_visible"][index][real]
        self.masks = batch["mask_labels"][index][:, real]
        self.classes = batch["class_labels"][index] if num_labels > 1 else 0 * batch["class_labels"][index]
        self.semantic = batch["semantic_labels"][index][real]
        self.image, self.geometry, self.fused, self.alpha = (
            None if value is None else value[own]
            for value in (
                encoding.image_embeds, encoding.point_embeds, encoding.features, encoding.fusion_weights
            )
        )  # fmt: skip
        self.members = [(self.ids == index).nonzero().flatten() for index in range(int(self.ids.max()) + 1)]
        self.seen = [members[self.visible[members]] for members in self.members]
        # [instances, superpoints]: the instance has more than half of the superpoint's points.
        shares = [[mask[members].double().mean() for members in self.members] for mask in self.masks]
        self.inside = torch.tensor(shares).reshape(len(self.masks), -1) > 0.5
        self.labels = [self._majority(self.semantic[members]) for members in self.members]

    @staticmethod
    def _majority(classes):
        """The class of more than half of the points, or None."""
        label = int(classes.mode().values)
        return label if label >= 0 and 2 * int((classes == label).sum()) > len(classes) else None

    def instance_of(self, superpoint):
        """The first instance that the superpoint lies in, or None."""
        instances = self.inside[:, superpoint].nonzero().flatten().tolist()
        return instances[0] if instances else None


def head_losses(sample, superpoints, class_logits, mask_logits, is_over_points, no_object_weight):
    """(class, mask, Dice) of one head and sample; None where no instance has a query."""
    targets = sample.masks.double()
    if not is_over_points:
        targets = sample.inside.double()
    labels = torch.full((len(superpoints),), class_logits.shape[1] - 1)
    crosses, dices = [], []
    for instance in range(len(sample.masks)):
        best, cost = None, math.inf
        for query, superpoint in enumerate(superpoints):
            if not sample.inside[instance, superpoint]:
                continue
            logits, target = mask_logits[query], targets[instance]
            cross = -(target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)).mean()
            probability = logits.sigmoid()
            dice = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
            score = class_logits[query].softmax(0)[sample.classes[instance]]
            if cross + dice - 0.5 * score < cost:
                best, cost, pair = query, cross + dice - 0.5 * score, (cross, dice)
        if best is not None:
            labels[best] = sample.classes[instance]
            crosses.append(pair[0])
            dices.append(pair[1])
    weights = torch.where(labels == class_logits.shape[1] - 1, no_object_weight, 1.0).double()
    losses = -class_logits.log_softmax(1)[torch.arange(len(labels)), labels]
    classification = (weights * losses).sum() / weights.sum()
    if not crosses:
        return classification, None, None
    return classification, torch.stack(crosses).mean(), torch.stack(dices).mean()


def semantic_loss(logits, classes, num_classes):
    """Mean cross entropy of the rows that have a class; None where none has."""
    chosen = [(row, label) for row, label in zip(logits, classes, strict=True) if label is not None]
    if not chosen:
        return None
    return torch.stack([-row[:num_classes].log_softmax(0)[label] for row, label in chosen]).mean()


def consistency_losses(samples, settings):
    """Of each sample, None where it does not apply."""
    anchors = []
    for number, sample in enumerate(samples):
        coverage = sample.visible.double().mean().item()
        if settings["coverage_gate"] == "hard" and coverage < settings["coverage_threshold"]:
            continue
        for superpoint, seen in enumerate(sample.seen):
            if len(seen):
                instance = sample.instance_of(superpoint)
                # Background of one class may be one wall, in another frame too.
                thing = ("background", sample.labels[superpoint]) if instance is None else (number, instance)
                anchors.append((number, thing, unit(sample.geometry[seen].mean(0)), unit(sample.image[seen].mean(0))))
    values = [[] for _ in samples]
    for number, thing, geometry, image in anchors:
        if settings["mode"] == "positive":
            values[number].append(-F.logsigmoid(geometry @ image / settings["temperature"]))
            continue
        others = [a for a in anchors if a[1] != thing and (settings["across_batch"] or a[0] == number)]
        if not others:
            continue
        positive = geometry @ image / settings["temperature"]
        to_images = [positive, *(geometry @ other[3] / settings["temperature"] for other in others)]
        to_points = [positive, *(other[2] @ image / settings["temperature"] for other in others)]
        both = torch.stack(to_images).logsumexp(0) + torch.stack(to_points).logsumexp(0)
        values[number].append(both / 2 - positive)
    losses = []
    for sample, found in zip(samples, values, strict=True):
        gate = min(1.0, sample.visible.double().mean().item() / settings["coverage_threshold"])
        gate = gate if settings["coverage_gate"] == "soft" else 1.0
        losses.append(gate * torch.stack(found).mean() if found else None)
    return losses


def spatial_loss(sample, voxel_size):
    """1 - cosine of every two voxels that touch, by a side, an edge or a corner."""
    cells = torch.floor(sample.points.float() * torch.tensor(1 / voxel_size, dtype=torch.float32)).long()
    cells, of_point = cells.unique(dim=0, return_inverse=True)
    means = unit(torch.stack([sample.fused[of_point == cell].mean(0) for cell in range(len(cells))]))
    touching = (cells[:, None] - cells[None]).abs().amax(2) == 1
    return (1 - means @ means.T)[touching].mean()


def noview_loss(sample, threshold):
    """Points out of view learn from the superpoint in view that looks most like them; None where it does not apply."""
    if sample.visible.all() or not sample.visible.any():
        return None
    teachers = torch.stack([unit(sample.fused[seen].mean(0)) for seen in sample.seen if len(seen)]).detach()
    closest = (unit(sample.fused[~sample.visible]) @ teachers.T).amax(1)
    taught = closest[closest > threshold]
    return (1 - taught).mean() if len(taught) else sample.fused.new_zeros(())


def image_semantic_loss(sample, classifier, num_classes):
    """The class of each superpoint in view from its image features alone, their length brought to that of a layer."""
    scale = math.sqrt(sample.image.shape[1])
    rows = [scale * sample.image[seen].mean(0) if len(seen) else None for seen in sample.seen]
    chosen = [(row, sample.labels[index]) for index, row in enumerate(rows) if row is not None]
    return semantic_loss([classifier(row) for row, _ in chosen], [label for _, label in chosen], num_classes)


def mean_of(values):
    """Mean of those that apply, 0 where none does."""
    applying = [value for value in values if value is not None]
    return torch.stack(applying).mean() if applying else torch.zeros(())


def slow_losses(batch, outputs, encoding, settings, classifier):
    """The unweighted terms, and the instance terms of each head.

    Args:
        batch: Inputs and labels.
        outputs: Of the network.
        encoding: Of its encoder.
        settings: Of the losses, by their plain names.
        classifier: Of the image features, or None.
    """
    num_labels = outputs.class_queries_logits.shape[2] - 1
    samples = [SlowSample(batch, index, encoding, num_labels) for index in range(len(batch["points"]))]
    heads = [*outputs.auxiliary_logits, outputs]
    terms = {"loss_cls": [], "loss_mask": [], "loss_dice": []}
    semantic = []
    for index, sample in enumerate(samples):
        queries = outputs.query_mask[index]
        superpoints = outputs.query_superpoints[index][queries].tolist()
        classes = [sample.labels[superpoint] for superpoint in superpoints]
        semantic.append(
            semantic_loss(outputs.semantic_queries_logits[index][queries], classes, settings["num_classes"])
        )
    for number, head in enumerate(heads):
        is_over_points = settings["levels"][number] == "point"
        found = []
        for index, sample in enumerate(samples):
            queries = outputs.query_mask[index]
            masks = head["masks_queries_logits"][index][queries]
            width = batch["point_mask"][index] if is_over_points else slice(len(sample.members))
            found.append(
                head_losses(
                    sample,
                    outputs.query_superpoints[index][queries].tolist(),
                    head["class_queries_logits"][index][queries],
                    masks[:, width],
                    is_over_points,
                    settings["no_object_weight"],
                )
            )
        for term, values in zip(terms, zip(*found, strict=True), strict=True):
            terms[term].append(mean_of(values))
    terms["loss_sem"] = mean_of(semantic)
    if encoding.image_embeds is not None:
        terms["loss_clip"] = mean_of(consistency_losses(samples, settings))
        terms["loss_noview"] = mean_of([noview_loss(sample, settings["noview_threshold"]) for sample in samples])
        balances = [
            (sample.alpha[sample.visible].mean() - settings["balance_target"]).square()
            if sample.visible.any()
            else None
            for sample in samples
        ]
        terms["loss_balance"] = mean_of(balances)
        images = [image_semantic_loss(sample, classifier, settings["num_classes"]) for sample in samples]
        terms["loss_image_sem"] = mean_of(images)
    terms["loss_spatial"] = mean_of([spatial_loss(sample, settings["voxel_size"]) for sample in samples])
    return terms
