"""A synthetic frame for tests: a textured room corner with boxes, rendered by formula."""

import numpy as np

from bifusion_hf.data.frames import RGBDFrame


POSE = np.array([[0.8, 0.0, 0.6, 1.5], [-0.6, 0.0, 0.8, -2.0], [0.0, -1.0, 0.0, 1.2], [0.0, 0.0, 0.0, 1.0]])
WALL, FLOOR, CHAIR, TABLE, BED = 0, 1, 2, 3, 10


def make_frame(height=120, width=160, *, with_pose=True, holes=True, seed=0, image_scale=1, **overrides) -> RGBDFrame:
    """Back wall at 3 m, floor 1.2 m below the camera, three boxes in front; colours are a smooth function of place."""
    rng = np.random.default_rng(seed)
    intrinsics = np.array([[0.9 * width, 0, 0.5 * width - 0.5], [0, 0.9 * width, 0.5 * height - 0.5], [0, 0, 1]])
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    below = (v - intrinsics[1, 2]) / intrinsics[1, 1]
    depth = np.full((height, width), 3.0)
    semantic = np.full((height, width), WALL)
    floor = 3.0 * below > 1.2
    depth[floor] = 1.2 / below[floor]
    semantic[floor] = FLOOR
    instance = np.full((height, width), -1)
    # Wall and floor may carry instance ids too; they have to be ignored.
    instance[floor] = 40
    for index, (name, left, distance) in enumerate([(CHAIR, 0.1, 2.2), (TABLE, 0.4, 1.8), (BED, 0.7, 2.0)]):
        box = (u > left * width) & (u < (left + 0.2) * width) & (v > 0.35 * height) & (v < 0.8 * height)
        depth[box], semantic[box], instance[box] = distance, name, 7 * index + 3
    semantic[: height // 10] = -1
    if holes:
        depth[rng.random((height, width)) < 0.05] = 0
    x, y = (u - intrinsics[0, 2]) / intrinsics[0, 0] * depth, below * depth
    # The phase moves with the object, so that each has its own colours.
    phase = 2.0 * semantic
    waves = [9 * x + 4 * y + phase, 7 * y - 5 * x + 1 + 2 * phase, 8 * x + 6 * depth + 2 + 3 * phase]
    image = np.rint(127 + np.array([100, 80, 60]) * np.sin(np.stack(waves, axis=-1))).astype(np.uint8)
    fields = {
        "image": image.repeat(image_scale, 0).repeat(image_scale, 1),
        "depth": depth,
        "intrinsics": intrinsics,
        "camera_to_world": POSE if with_pose else None,
        "instance": instance,
        "semantic": semantic,
        "frame_id": f"synthetic {seed}",
    }
    return RGBDFrame(**{**fields, **overrides})
