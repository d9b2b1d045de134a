"""A network that reads the answer off the colours, and the frames that show it: red is the class plus one."""

from types import SimpleNamespace

import numpy as np
import torch
from frame_factory import make_frame
from torch import nn

from bifusion_hf.labels import INSTANCE_CLASS_NAMES, SCANNET200_CLASS_NAMES
from bifusion_hf.processing_bifusion import BiFusionProcessor


def readable_frame(seed=0, **overrides):
    """`make_frame` with classes as colours and objects as superpoints."""
    frame = make_frame(60, 80, seed=seed)
    superpoints = np.where(frame.instance >= 0, frame.instance + 1, 0) + 100 * (frame.semantic + 1)
    image = np.zeros((60, 80, 3), np.uint8)
    image[..., 0] = frame.semantic + 1
    return make_frame(60, 80, seed=seed, image=image, superpoints=superpoints, **overrides)


def readable_processor(class_aware, **overrides):
    labels = {}
    if class_aware:
        labels = {"class_to_label": [-1, -1, *range(198)], "label_names": INSTANCE_CLASS_NAMES}
    return BiFusionProcessor(**{"num_points": 3000, **labels, **overrides})


class ReadingEncoder:
    """An image-text model that reads the class off the colour in the middle of a crop, and knows the classes' names.

    Args:
        confused: Names of classes that it takes for a chair.
    """

    name, independent, image_mean, image_size = "reader", False, (0.9, 0.9, 0.9), 16

    def __init__(self, confused=()):
        self.confused = [SCANNET200_CLASS_NAMES.index(name) for name in confused]

    def encode_texts(self, texts):
        return torch.eye(201)[[SCANNET200_CLASS_NAMES.index(text) if text in SCANNET200_CLASS_NAMES else 200
                               for text in texts]]  # fmt: skip

    def encode_images(self, images):
        classes = [int(image[len(image) // 2, len(image) // 2, 0]) - 1 for image in images]
        return torch.eye(201)[[2 if index in self.confused else index for index in classes]]

    def logits(self, cosines):
        return 10 * cosines


class PerfectNetwork(nn.Module):
    """Query j is superpoint j and its mask is that superpoint; its class is in the colour.

    Args:
        processor: Of the frames.
        confused: Classes taken for a chair.
    """

    device = torch.device("cpu")

    def __init__(self, processor, confused=()):
        super().__init__()
        self.config = SimpleNamespace(semantic_id2label=dict(enumerate(SCANNET200_CLASS_NAMES)))
        self.processor = processor
        self.confused = list(confused)
        self.eval()

    def forward(self, points, point_colors, point_mask, superpoint_ids, **kwargs):
        red = point_colors[..., 0] * self.processor.color_std[0] + self.processor.color_mean[0]
        classes = (255 * red).round().long() - 1
        classes[torch.isin(classes, torch.tensor(self.confused, dtype=torch.int64))] = 2
        num_queries = int(superpoint_ids.max()) + 1
        queries = torch.arange(num_queries)
        mine = superpoint_ids[:, None] == queries[:, None]
        of_query = torch.where(mine, classes[:, None], -1).amax(dim=2)
        labels = torch.where(of_query >= 2, of_query - 2, -1)
        num_labels = len(self.processor.label_names)
        if num_labels == 1:
            labels = labels.clamp(max=0)
        # A class of -1 counts from the end: the last column is "none".
        class_logits = nn.functional.one_hot(labels % (num_labels + 1), num_labels + 1)
        semantic_logits = nn.functional.one_hot(of_query % 201, 201)
        return SimpleNamespace(
            # Far enough apart that the other labels have probability 0 in float32 and give no instance.
            class_queries_logits=200.0 * class_logits,
            masks_queries_logits=40.0 * mine - 20,
            semantic_queries_logits=20.0 * semantic_logits,
            query_mask=mine.any(dim=2),
            query_superpoints=queries.expand(len(points), -1),
        )
