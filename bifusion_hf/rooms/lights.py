"""Light of a room: ceiling lamps, daylight through windows, sun patches, and ambient light with occlusion."""

import numpy as np

from .layout import Room, rotation
from .vectors import dot, length


# Each pixel of a block of 4 x 4 takes one of 16 samples; the irradiance is then averaged over such a block on the same
# surface, so that soft shadows cost one ray per pixel.
_BLOCK = 4
_AMBIENT_REACH = 0.7


def _sample_pattern(shape: tuple[int, int]) -> np.ndarray:
    """Points in the unit square, float32 [H W, 2], that fill it evenly over every block of pixels."""
    height, width = shape
    row, column = np.mgrid[0:height, 0:width] % _BLOCK
    first = (row * _BLOCK + column + 0.5) / _BLOCK**2
    # A permutation of the first number, so that the pairs form a stratified set.
    second = (((row * _BLOCK + column) * 7) % _BLOCK**2 + 0.5) / _BLOCK**2
    return np.stack([first, second], axis=-1).reshape(-1, 2).astype(np.float32)


class Lighting:
    """The lights of one room.

    Args:
        room: The furnished room.
        rng: Generator.
        embree: The room's embree scene, for shadows.
    """

    def __init__(self, room: Room, rng: np.random.Generator, embree):
        self.embree = embree
        warmth = rng.uniform(-1, 1)
        self.lamp_color = np.array([1 + 0.18 * warmth, 1 + 0.04 * warmth, 1 - 0.2 * warmth])
        day = rng.random()
        self.ambient = rng.uniform(0.2, 0.45) * np.array([1.0, 1.0, 1.0])
        self.floor_bounce = rng.uniform(0.4, 0.8)
        count = 1 if rng.random() < 0.7 else 2
        self.lamps = [
            (
                np.array([room.width, room.depth, 0]) * [*rng.uniform(0.25, 0.75, 2), 0]
                + [0, 0, room.height - rng.uniform(0.35, 0.7)],
                rng.uniform(0.05, 0.25),
                rng.uniform(0.8, 2.2) / count,
            )
            for _ in range(count)
        ]
        self.windows = [
            (item.position, rotation(item.yaw), item.mesh.size.astype(np.float64))
            for item in room.objects
            if item.class_name == "window"
        ][:2]
        self.daylight = (0.8 + 2.5 * day) * np.array([0.92, 0.98, 1.08])
        self.window_glow = 0.4 + 1.8 * day
        turn, height = rng.uniform(-0.9, 0.9), rng.uniform(0.35, 0.95)
        # Towards the sun, in the window's own axes: outside is +y.
        self.sun = np.array([np.sin(turn) * np.cos(height), np.cos(turn) * np.cos(height), np.sin(height)])
        self.sun_color = (3.5 * day if rng.random() < 0.6 else 0.0) * np.array([1.1, 1.0, 0.85])

    def vary(self, focus: np.ndarray, rng: np.random.Generator) -> None:
        """Makes the light less even: a dim or bright room, a small lamp near a place [2], tints.

        The white balance of a camera takes most of a tint away, seldom none.
        """
        kept = 1.0 if rng.random() < 0.08 else rng.uniform(0.1, 0.5)
        tints = np.exp(kept * rng.normal(0, [[0.1], [0.06]], (2, 3)))
        self.lamp_color = _fainter(self.lamp_color, kept) * tints[0]
        self.ambient = self.ambient * tints[1] * rng.uniform(0.5, 2.0)
        self.daylight = _fainter(self.daylight, kept) * rng.uniform(0.3, 1.0)
        self.sun_color = _fainter(self.sun_color, kept)
        if rng.random() < 0.35:
            place = np.array([*(focus + rng.normal(0, 0.6, 2)), rng.uniform(1.2, 2.0)])
            self.lamps = [*self.lamps[:1], (place, rng.uniform(0.01, 0.1), rng.uniform(0.2, 0.9))]

    def irradiance(
        self, points: np.ndarray, normals: np.ndarray, flat: np.ndarray, depth: np.ndarray, surface: np.ndarray,
        shape: tuple[int, int],
    ) -> np.ndarray:  # fmt: skip
        """Light that falls on points.

        Args:
            points: float32 [N, 3] a little above their surfaces.
            normals: float32 [N, 3] shading normals.
            flat: float32 [N, 3] normals of the triangles.
            depth: float32 [N], to keep the averaging on one surface.
            surface: int [N], what they lie on.
            shape: (H, W) with H W = N.

        Returns:
            float64 [N, 3].
        """
        sample = _sample_pattern(shape)
        light = self._ambient(points, normals, flat, sample)
        for position, radius, power in self.lamps:
            angle = 2 * np.pi * sample[:, 0]
            offset = radius * np.sqrt(sample[:, 1])[:, None] * np.stack([np.cos(angle), np.sin(angle), 0 * angle], -1)
            light += power * self.lamp_color * self._from_point(points, normals, position + offset)[:, None]
        for position, turn, size in self.windows:
            local = np.stack(
                [(sample[:, 0] - 0.5) * size[0], np.full(len(sample), -size[1] / 2 - 0.05), sample[:, 1] * size[2]], -1
            )
            pane = position + local @ turn.T
            inward = -turn[:, 1]
            toward = points - pane
            cosine = np.maximum(toward @ inward, 0) / np.maximum(length(toward), 1e-6)
            area = size[0] * size[2]
            light += self.daylight * (area * cosine * self._from_point(points, normals, pane))[:, None]
        light = _average(light.reshape(*shape, 3), depth.reshape(shape), normals.reshape(*shape, 3)).reshape(-1, 3)
        for position, turn, size in self.windows if self.sun_color.any() else ():
            light += self.sun_color * self._sun_patch(points, normals, position, turn, size)[:, None]
        return light

    def _ambient(self, points: np.ndarray, normals: np.ndarray, flat: np.ndarray, sample: np.ndarray) -> np.ndarray:
        angle, height = 2 * np.pi * sample[:, 0], np.sqrt(1 - sample[:, 1])
        radius = np.sqrt(sample[:, 1])
        helper = np.where(np.abs(flat[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
        tangent = np.cross(helper, flat)
        tangent /= np.maximum(length(tangent)[:, None], 1e-9)
        other = np.cross(flat, tangent)
        directions = (
            (radius * np.cos(angle))[:, None] * tangent
            + (radius * np.sin(angle))[:, None] * other
            + height[:, None] * flat
        )
        open_ = ~self._blocked(points, directions, np.full(len(points), _AMBIENT_REACH))
        # The ceiling lights from above more than the floor from below.
        above = self.floor_bounce + (1 - self.floor_bounce) * (0.5 + 0.5 * normals[:, 2])
        return self.ambient * (above * (0.25 + 0.75 * open_))[:, None]

    def _from_point(self, points: np.ndarray, normals: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """Cosine over squared distance of one source per point, 0 in shadow."""
        toward = sources - points
        distance = length(toward)
        cosine = np.maximum(dot(toward, normals), 0) / np.maximum(distance, 1e-6)
        blocked = self._blocked(points, toward, np.full(len(points), 0.98))
        return np.where(blocked, 0, cosine / np.maximum(distance, 0.3) ** 2)

    def highlights(self, points: np.ndarray, directions: np.ndarray, rough: np.ndarray) -> np.ndarray:
        """Light [N, 3] of the lamps that mirrors of a roughness [N] throw back to where it is seen from.

        Args:
            points: [N, 3] on the mirrors.
            directions: [N, 3] unit vectors, of the view as mirrored there.
            rough: [N] width of the lobe (B. Phong's, of the same energy) in radians, about.
        """
        total = np.zeros_like(points)
        for position, radius, power in self.lamps:
            toward = position - points
            distance = np.maximum(length(toward), 0.3)
            cosine = np.maximum(dot(toward, directions) / distance, 0)
            exponent = 2 / (rough**2 + (radius / distance) ** 2)
            lobe = (exponent + 1) / 2 * cosine**exponent * power / distance**2
            blocked = self._blocked(points, toward, np.full(len(points), 0.98))
            total += np.where(blocked, 0, lobe)[:, None] * self.lamp_color
        return total

    def _sun_patch(self, points, normals, position, turn, size) -> np.ndarray:
        sun = turn @ self.sun
        local = (points - position) @ turn
        reach = (-size[1] / 2 - 0.05 - local[:, 1]) / self.sun[1]
        crossing = local + reach[:, None] * self.sun
        inside = (
            (np.abs(crossing[:, 0]) < 0.45 * size[0]) & (crossing[:, 2] > 0.06) & (crossing[:, 2] < size[2] - 0.06)
        )
        cosine = np.maximum(normals @ sun, 0)
        rows = np.flatnonzero(inside & (reach > 0) & (cosine > 0))
        result = np.zeros(len(points))
        if len(rows):
            directions = np.broadcast_to(sun, (len(rows), 3))
            result[rows] = np.where(self._blocked(points[rows], directions, reach[rows]), 0, cosine[rows])
        return result

    def _blocked(self, points: np.ndarray, directions: np.ndarray, reach: np.ndarray) -> np.ndarray:
        """Whether something lies on the rays before `reach` times the direction, bool [N]."""
        answer = self.embree.run(
            np.ascontiguousarray(points, np.float32), np.ascontiguousarray(directions, np.float32),
            dists=np.ascontiguousarray(reach, np.float32), query="OCCLUDED",
        )  # fmt: skip
        return answer == 0


def _fainter(color: np.ndarray, kept: float) -> np.ndarray:
    """A light [3] as bright with a share of its tint."""
    mean = color.mean()
    return mean * (color / mean) ** kept if mean > 0 else color


def _average(light: np.ndarray, depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Mean over the block of samples around each pixel, over pixels of a like depth and normal only."""
    height, width = depth.shape
    # Channels one after the other: whole planes are added faster than triples.
    light, normals = (np.ascontiguousarray(values.transpose(2, 0, 1)) for values in (light, normals))
    total, weight = np.zeros_like(light), np.zeros(depth.shape)
    reach = range(-_BLOCK // 2, _BLOCK // 2)
    for dy in reach:
        for dx in reach:
            rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
            others = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
            near = np.abs(depth[rows, columns] - depth[others]) < 0.04 * depth[rows, columns]
            product = [plane[rows, columns] * plane[others] for plane in normals]
            same = near & (product[0] + product[1] + product[2] > 0.85)
            for channel, plane in zip(total, light, strict=True):
                channel[rows, columns] += same * plane[others]
            weight[rows, columns] += same
    return np.where(weight > 0, total / np.maximum(weight, 1), light).transpose(1, 2, 0)
