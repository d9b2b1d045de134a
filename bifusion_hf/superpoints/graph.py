"""Region adjacency and greedy merging, the second half of the over-segmentation."""

import heapq

import numpy as np
from scipy import sparse, spatial
from scipy.sparse import csgraph

from .geometry import camera_coordinates


Links = tuple[np.ndarray, np.ndarray]


def connected_segments(labels: np.ndarray, links: Links) -> np.ndarray:
    """Splits labels into parts that are connected through links.

    Args:
        labels: int [H, W], negative = none.
        links: bool [H, W-1] and [H-1, W], the pairs of 4-neighbours that may share a segment.

    Returns:
        int32 [H, W], 0..S-1 in the order of their first pixel, -1 where `labels` is negative.
    """
    pixels = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)
    right = links[0] & (labels[:, :-1] == labels[:, 1:])
    down = links[1] & (labels[:-1] == labels[1:])
    heads, tails = _pair_ends(pixels, (right, down))
    graph = sparse.coo_array((np.ones(len(heads), bool), (heads, tails)), shape=(labels.size, labels.size))
    _, parts = csgraph.connected_components(graph, directed=False)
    return number_segments(np.where(labels.ravel() >= 0, parts, -1)).reshape(labels.shape)


def cut_at_barred_pairs(labels: np.ndarray, depth: np.ndarray, links: Links, barred: Links) -> np.ndarray:
    """Cuts segments until no barred pair of pixels lies within one.

    A segment that runs round the end of a depth edge is cut into a near and a far part, halfway up its largest
    barred step, and again if need be.

    Args:
        labels: int [H, W], negative = none, each segment connected through `links`.
        depth: float [H, W].
        links: The pairs of 4-neighbours that may share a segment.
        barred: The pairs that must not; their depths differ.

    Returns:
        int32 [H, W], numbered as by `connected_segments`.
    """
    near = np.concatenate([_pair_values(np.minimum, depth, axis)[barred[axis]] for axis in (0, 1)])
    far = np.concatenate([_pair_values(np.maximum, depth, axis)[barred[axis]] for axis in (0, 1)])
    by_step = np.argsort(far - near, kind="stable")
    while True:
        heads, tails = _pair_ends(labels, barred)
        inner = by_step[heads[by_step] == tails[by_step]]
        if not len(inner):
            return number_segments(labels)
        number = int(labels.max()) + 1
        cut = np.full(number, np.inf, depth.dtype)
        # The last assignment stands: that of the largest step.
        cut[heads[inner]] = (near[inner] + far[inner]) / 2
        sides = np.where((labels >= 0) & (depth > cut[labels]), labels + number, labels)
        labels = connected_segments(sides, links)


def _pair_values(function, values: np.ndarray, axis: int) -> np.ndarray:
    """`function` of each pixel and its right (axis 0) or lower (axis 1) neighbour."""
    return function(values[:, :-1], values[:, 1:]) if axis == 0 else function(values[:-1], values[1:])


def _pair_ends(labels: np.ndarray, pairs: Links) -> tuple[np.ndarray, np.ndarray]:
    """Labels at both ends of the given pixel pairs, those to the right first, then those below."""
    right, down = pairs
    heads = np.concatenate([labels[:, :-1][right], labels[:-1][down]])
    return heads, np.concatenate([labels[:, 1:][right], labels[1:][down]])


def number_segments(labels: np.ndarray) -> np.ndarray:
    """Renumbers non-negative labels 0..S-1 in the order of their first element; int32, -1 stays."""
    found, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.where(found < 0, -1, first), kind="stable")
    rank = np.empty(len(found), np.int32)
    rank[order] = np.arange(len(found), dtype=np.int32) - np.count_nonzero(found < 0)
    return np.maximum(rank, -1)[inverse].reshape(labels.shape)


def region_pairs(
    labels: np.ndarray, pairs: Links, weights: Links | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of different regions that touch through the given pixel pairs.

    Args:
        labels: int [H, W], negative = none.
        pairs: bool [H, W-1] and [H-1, W], the pixel pairs that count.
        weights: Values on the pixel pairs, of the same shapes.

    Returns:
        low [E], high [E] (region ids, low < high), count [E] of pixel pairs and the sum [E] of their weights (0
        without weights), sorted by (low, high).
    """
    head, tail = _pair_ends(labels, pairs)
    different = (head != tail) & (head >= 0) & (tail >= 0)
    head, tail = head[different], tail[different]
    if weights is None:
        value = np.zeros(len(head))
    else:
        value = np.concatenate([weight[pair] for weight, pair in zip(weights, pairs, strict=True)])[different]
    number = int(labels.max(initial=-1)) + 1
    keys, inverse, count = np.unique(
        np.minimum(head, tail).astype(np.int64) * number + np.maximum(head, tail),
        return_inverse=True,
        return_counts=True,
    )
    low, high = np.divmod(keys, number)
    return low, high, count, np.bincount(inverse, weights=value, minlength=len(keys))


class RegionGraph:
    """Regions that merge greedily, the cheapest pair first.

    The cost of a pair is `(|f_a - f_b|^2 + contrast) * s^p`: f the regions' mean features, contrast the mean over
    their common boundary, s the smaller size. p between 0 (the difference alone) and 1 (Ward's criterion for regions
    of very unequal size) decides how readily small regions merge.

    Args:
        sizes: [R] pixels of each region.
        features: float [R, C] means, scaled so that 1 is a clear difference.
        adjacent: low, high, count, contrast of the regions that touch, as `region_pairs` returns them.
        barred: [F, 2] region pairs that must never share a segment.
        size_power: p.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        features: np.ndarray,
        adjacent: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        barred: np.ndarray,
        size_power: float,
    ):
        self.parent = list(range(len(sizes)))
        self.sizes = [int(size) for size in sizes]
        self.sums = (np.asarray(features, np.float64) * np.asarray(sizes)[:, None]).tolist()
        self.size_power = size_power
        # region -> neighbour -> [pixel pairs, sum of their contrast]; the list is shared by both directions.
        self.adjacent: list[dict[int, list[float]]] = [{} for _ in self.sizes]
        self.near: list[dict[int, float]] = [{} for _ in self.sizes]
        self.barred: list[set[int]] = [set() for _ in self.sizes]
        for a, b, number, total in zip(*(column.tolist() for column in adjacent), strict=True):
            self.adjacent[a][b] = self.adjacent[b][a] = [number, total]
        for a, b in barred.tolist():
            self.barred[a].add(b)
            self.barred[b].add(a)

    def add_near(self, low: np.ndarray, high: np.ndarray, distance: np.ndarray) -> None:
        """Adds pairs of regions that lie close to each other, as `nearby_pairs` returns them."""
        for a, b, value in zip(low.tolist(), high.tolist(), distance.tolist(), strict=True):
            self.near[a][b] = self.near[b][a] = value

    def difference(self, a: int, b: int) -> float:
        """How different two adjacent regions are, whatever their size."""
        size_a, size_b = self.sizes[a], self.sizes[b]
        number, total = self.adjacent[a][b]
        squares = 0.0
        for x, y in zip(self.sums[a], self.sums[b], strict=True):
            d = x / size_a - y / size_b
            squares += d * d
        return squares + total / number

    def cost(self, a: int, b: int) -> float:
        """Cost of merging two adjacent regions."""
        return self.difference(a, b) * min(self.sizes[a], self.sizes[b]) ** self.size_power

    def merge(self, a: int, b: int) -> int:
        """Merges two regions into the one with more neighbours, and returns it."""
        if len(self.adjacent[b]) > len(self.adjacent[a]):
            a, b = b, a
        self.parent[b] = a
        self.sizes[a] += self.sizes[b]
        self.sums[a] = [x + y for x, y in zip(self.sums[a], self.sums[b], strict=True)]
        self.adjacent[a].pop(b, None)
        self.near[a].pop(b, None)
        for other, edge in self.adjacent[b].items():
            if other == a:
                continue
            del self.adjacent[other][b]
            known = self.adjacent[a].get(other, [0, 0.0])
            self.adjacent[a][other] = self.adjacent[other][a] = [known[0] + edge[0], known[1] + edge[1]]
        for other, distance in self.near[b].items():
            if other != a:
                del self.near[other][b]
                distance = min(distance, self.near[a].get(other, np.inf))
                self.near[a][other] = self.near[other][a] = distance
        for other in self.barred[b]:
            self.barred[other].discard(b)
            self.barred[other].add(a)
            self.barred[a].add(other)
        self.adjacent[b], self.near[b], self.barred[b] = {}, {}, set()
        return a

    def absorb_small(self, min_size: int) -> None:
        """Merges every region below `min_size` pixels, the smallest first.

        Each goes to the most similar adjacent region it may merge with, or else to the nearest of those close by; what
        has neither stays.
        """
        heap = [(size, a) for a, size in enumerate(self.sizes) if self.parent[a] == a and size < min_size]
        heapq.heapify(heap)
        while heap:
            size, a = heapq.heappop(heap)
            if self.parent[a] != a or self.sizes[a] != size:
                continue
            choices = [(self.difference(a, b), b) for b in self.adjacent[a] if b not in self.barred[a]]
            if not choices:
                choices = [(distance, b) for b, distance in self.near[a].items() if b not in self.barred[a]]
            if choices:
                kept = self.merge(a, min(choices)[1])
                if self.sizes[kept] < min_size:
                    heapq.heappush(heap, (self.sizes[kept], kept))

    def merge_to(self, number: int, min_size: int) -> None:
        """Merges adjacent regions until at most `number` of those with `min_size` pixels or more are left."""
        large = sum(self.parent[a] == a and size >= min_size for a, size in enumerate(self.sizes))
        # Entries of regions that have changed since, or are gone, are stale.
        version = [0] * len(self.parent)
        heap = [(self.cost(a, b), a, b, 0, 0) for a, row in enumerate(self.adjacent) for b in row if a < b]
        heapq.heapify(heap)
        while heap and large > number:
            _, a, b, version_a, version_b = heapq.heappop(heap)
            if version[a] != version_a or version[b] != version_b or b in self.barred[a]:
                continue
            large -= (self.sizes[a] >= min_size) + (self.sizes[b] >= min_size)
            version[a] += 1
            version[b] += 1
            kept = self.merge(a, b)
            large += self.sizes[kept] >= min_size
            for other in self.adjacent[kept]:
                if other not in self.barred[kept]:
                    low, high = min(kept, other), max(kept, other)
                    heapq.heappush(heap, (self.cost(low, high), low, high, version[low], version[high]))

    def roots(self) -> np.ndarray:
        """The region, int [R], that each first region has become part of."""
        root = np.array(self.parent, dtype=np.intp)
        while (root[root] != root).any():
            root = root[root]
        return root


def nearby_pairs(
    labels: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, small: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For small regions the other regions that come close in space.

    Args:
        labels: int [H, W], region of each pixel, negative = none.
        depth: float32 [H, W] metres.
        intrinsics: [3, 3] of the depth image.
        small: bool [R], regions whose surroundings are asked for.
        radius: How far to look from each pixel, as a fraction of its depth.

    Returns:
        low [E], high [E] (region ids, low < high) and the distance [E] in metres between their nearest pixels, sorted
        by (low, high).
    """
    places = camera_coordinates(depth, intrinsics)[labels >= 0].astype(np.float64)
    members = labels[labels >= 0]
    asking = np.flatnonzero(small[members])
    # A tree built in haste: few queries follow.
    tree = spatial.cKDTree(places, balanced_tree=False, compact_nodes=False)
    found = tree.query_ball_point(places[asking], radius * places[asking, 2])
    heads = np.repeat(asking, [len(each) for each in found])
    tails = np.concatenate([np.asarray(each, dtype=np.intp) for each in found] or [asking])
    heads, tails = (each[members[heads] != members[tails]] for each in (heads, tails))
    distances = np.sqrt(((places[heads] - places[tails]) ** 2).sum(axis=1))
    low, high = np.minimum(members[heads], members[tails]), np.maximum(members[heads], members[tails])
    order = np.lexsort((distances, high, low))
    low, high, distances = low[order], high[order], distances[order]
    first = np.ones(len(low), bool)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return low[first], high[first], distances[first]
