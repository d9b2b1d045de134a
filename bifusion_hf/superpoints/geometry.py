"""Per-pixel geometry that the over-segmentation rests on: strong depth edges, normals, links between neighbours."""

import numpy as np
from scipy import ndimage


# A step between neighbours is a strong depth edge above `EDGE_BASE + EDGE_SLOPE * z + EDGE_QUANTISATION * z^2`
# metres. The last term is twice the depth step of a structured-light sensor (Khoshelham and Elberink 2012: 2.85 mm
# at 1 m, growing with z^2).
EDGE_BASE = 0.02
EDGE_SLOPE = 0.01
EDGE_QUANTISATION = 0.0057
MIN_EDGE_LENGTH = 6


def depth_edges(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strong depth edges between 4-neighbours.

    The step from one pixel to the next, less the slope that the surface has on its flatter side, is held against a
    threshold that grows with depth as the noise of a Kinect does: a floor seen at a grazing angle is no edge.
    Neither is a single pixel that sticks out: a chain of fewer than `MIN_EDGE_LENGTH` steps that touches no hole.

    Args:
        depth: float32 [H, W] metres, 0 = no measurement.

    Returns:
        bool [H, W-1] and bool [H-1, W]: an edge between a pixel and its right, and its lower, neighbour; False
        where either has no measurement.
    """
    right, down = _edges_along_rows(depth), _edges_along_rows(depth.T).T
    valid = depth > 0
    # Cracks between pixels on a grid of twice the size: pixels at even places, cracks between them, corners at odd.
    upright, level = right | (valid[:, :-1] != valid[:, 1:]), down | (valid[:-1] != valid[1:])
    cracks = np.zeros((2 * depth.shape[0] - 1, 2 * depth.shape[1] - 1), bool)
    cracks[::2, 1::2], cracks[1::2, ::2] = upright, level
    cracks[1::2, 1::2] = upright[:-1] | upright[1:] | level[:, :-1] | level[:, 1:]
    chains, number = ndimage.label(cracks)
    # A chain of n cracks has n - 1 to n + 1 corners.
    long = np.bincount(chains.ravel(), minlength=number + 1) >= 2 * MIN_EDGE_LENGTH
    return right & long[chains[::2, 1::2]], down & long[chains[1::2, ::2]]


def _edges_along_rows(depth: np.ndarray) -> np.ndarray:
    valid = depth > 0
    both = valid[:, :-1] & valid[:, 1:]
    step = np.where(both, depth[:, 1:] - depth[:, :-1], 0)
    # The slope on either side of the step; unknown (0) beside the border or a hole.
    before = np.zeros_like(step)
    after = np.zeros_like(step)
    before[:, 1:] = step[:, :-1]
    after[:, :-1] = step[:, 1:]
    sign = np.sign(step)
    slope = np.clip(np.minimum(before * sign, after * sign), 0, None)
    near = np.minimum(depth[:, :-1], depth[:, 1:])
    threshold = EDGE_BASE + EDGE_SLOPE * near + EDGE_QUANTISATION * near**2
    return both & (np.abs(step) - slope > threshold)


def surface_links(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of 4-neighbours that lie on one surface: both measured, no strong depth edge between.

    Args:
        depth: float32 [H, W] metres, 0 = no measurement.

    Returns:
        bool [H, W-1] and bool [H-1, W], right and lower neighbour.
    """
    valid = depth > 0
    right, down = depth_edges(depth)
    return valid[:, :-1] & valid[:, 1:] & ~right, valid[:-1] & valid[1:] & ~down


def estimate_normals(
    depth: np.ndarray, intrinsics: np.ndarray, links: tuple[np.ndarray, np.ndarray], window: int
) -> np.ndarray:
    """Unit normals in camera axes, facing the camera.

    Inverse depth is affine in the pixel on a plane, so its mean gradient over a window gives the plane's normal;
    steps across depth edges and holes are left out of the mean, so that normals do not bend there.

    Args:
        depth: float32 [H, W] metres, 0 = no measurement.
        intrinsics: [3, 3] of the depth image.
        links: What `surface_links` returns.
        window: Side of the averaging window in pixels.

    Returns:
        float32 [H, W, 3]; zero where there is no measurement, against the optical axis where there is no neighbour to
        compare with.
    """
    valid = depth > 0
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=valid)
    along_x = _mean_step(inverse, links[0], window)
    along_y = _mean_step(inverse.T, links[1].T, window).T
    fx, fy, cx, cy = (np.float32(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    height, width = depth.shape
    u = np.arange(width, dtype=np.float32) - cx
    v = np.arange(height, dtype=np.float32)[:, None] - cy
    # 1/z = a x/z + b y/z + c with (a, b, c) along the normal.
    a = along_x * fx
    b = along_y * fy
    c = inverse - along_x * u - along_y * v
    normals = np.stack([-a, -b, -c], axis=-1)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.divide(normals, length, out=np.zeros_like(normals), where=valid[..., None] & (length > 0))


def _mean_step(values: np.ndarray, link: np.ndarray, window: int) -> np.ndarray:
    """Mean difference to the right neighbour over the links of a window around each pixel."""
    step = np.zeros_like(values)
    weight = np.zeros_like(values)
    step[:, :-1] = np.where(link, values[:, 1:] - values[:, :-1], 0)
    weight[:, :-1] = link
    # Two passes of a box are close to a Gaussian.
    for _ in range(2):
        step = ndimage.uniform_filter(step, window, mode="constant")
        weight = ndimage.uniform_filter(weight, window, mode="constant")
    # A filter that slides leaves rounding errors where the window is empty.
    return np.divide(step, weight, out=np.zeros_like(step), where=weight > 0.5 / window**4)


def camera_coordinates(depth: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Camera coordinates of all pixels, float32 [H, W, 3] metres.

    Args:
        depth: float32 [H, W] metres.
        intrinsics: [3, 3] of the depth image.
    """
    height, width = depth.shape
    x = (np.arange(width) - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(height) - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([depth * x, depth * y[:, None], depth], axis=-1).astype(np.float32)
