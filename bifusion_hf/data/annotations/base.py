"""What all readers of annotations give: objects as polygons or runs of pixels, and how they become label images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...io.files import DataFileError
from ...labels import NONE


# A corner may lie this share of the image's side outside of it, and is cut off there: hands draw over borders. Farther
# out it is a polygon of another image, or in other units.
OVERSHOOT = 0.05


@dataclass(frozen=True, eq=False)
class AnnotatedObject:
    """One object of an image.

    Args:
        label: Name of its class.
        polygons: float64 [P, 2] each, x right and y down; the corner of the image is (0, 0), the centre of its first
            pixel (0.5, 0.5). The object is what any of them holds.
        runs: int64, lengths of runs of pixels column by column, the first of them outside; in place of polygons.
        place: File and place in it, for messages.
        crowd: Several things in one: they get the class, but no instance.
    """

    label: str
    polygons: tuple[np.ndarray, ...]
    place: str
    runs: np.ndarray | None = None
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """The objects of an image.

    Args:
        size: (width, height) of the image that was annotated; None = coordinates are fractions of its sides.
        objects: In the order of the file; none is an image without any object.
        place: File and place in it, for messages.
    """

    size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]
    place: str


@dataclass
class DrawnLabels:
    """Label images of a frame, on the grid of its depth image.

    Args:
        instance: int32 [H, W], -1 = none.
        semantic: int32 [H, W], class index, -1 = none; None where objects have no classes.
        notes: What there is to tell, a line for each time.
    """

    instance: np.ndarray
    semantic: np.ndarray | None
    notes: list[str] = field(default_factory=list)


class Annotations(Protocol):
    """Labels of images by the images' names.

    Attributes: `names`, of the images, paths without endings; `labels`, names of classes in their order.
    """

    names: list[str]
    labels: list[str]

    def files(self) -> Iterator[Path]:
        """The files that the labels come from."""
        ...

    def draw(
        self, name: str, image_size: tuple[int, int], shape: tuple[int, int], classes: Mapping[str, int]
    ) -> DrawnLabels:
        """The labels of an image.

        Args:
            name: One of `names`.
            image_size: (width, height) of the frame's colour image.
            shape: (height, width) of its depth image.
            classes: Class index of each label.

        Raises:
            DataFileError: The labels are of an image of another size, or malformed.
        """
        ...


class ObjectAnnotations:
    """Annotations that are objects; see `Annotations`.

    Args:
        images: By name.
        labels: Names of classes in their order.
        sources: The files.
    """

    def __init__(self, images: Mapping[str, AnnotatedImage], labels: Iterable[str], sources: Sequence[Path]):
        self.images = dict(images)
        self.names, self.labels, self.sources = list(images), list(labels), list(sources)

    def files(self) -> Iterator[Path]:
        """See `Annotations`."""
        return iter(self.sources)

    def draw(
        self, name: str, image_size: tuple[int, int], shape: tuple[int, int], classes: Mapping[str, int]
    ) -> DrawnLabels:
        """See `Annotations`. Small objects lie on top of large ones, whatever their order."""
        image = self.images[name]
        if image.size is not None:
            check_size(image.size, image_size, image.place)
        size = image.size or (1, 1)
        pixels = [_pixels(item, size, shape) for item in image.objects]
        drawn = DrawnLabels(np.full(shape, NONE, dtype=np.int32), np.full(shape, NONE, dtype=np.int32))
        instance, semantic = drawn.instance.reshape(-1), drawn.semantic.reshape(-1)
        for index in sorted(range(len(pixels)), key=lambda index: -len(pixels[index])):
            item = image.objects[index]
            instance[pixels[index]] = NONE if item.crowd else index
            semantic[pixels[index]] = classes[item.label]
        left = np.bincount(instance[instance >= 0], minlength=len(pixels))
        for index, item in enumerate(image.objects):
            if item.crowd:
                drawn.notes.append(f"crowds of {item.label}, without instances")
            elif not len(pixels[index]):
                drawn.notes.append("objects smaller than a pixel of depth, left out")
            elif not left[index]:
                drawn.notes.append("objects that others cover wholly, left out")
            else:
                drawn.notes.append(f"objects of {item.label}")
            if any(reaches_out(polygon, size) for polygon in item.polygons):
                drawn.notes.append("objects that reach out of the image, cut off")
        return drawn


def check_size(annotated: tuple[int, int], image: tuple[int, int], place: str | Path) -> None:
    """Refuses annotations of an image of another shape; another resolution is fine.

    Raises:
        DataFileError: The sides (width, height) are not in proportion, beyond a pixel of rounding.
    """
    if abs(annotated[0] * image[1] - annotated[1] * image[0]) > max(*annotated, *image):
        raise DataFileError(
            place,
            f"is of an image of {annotated[0]}x{annotated[1]}, and the frame's colour is {image[0]}x{image[1]}; "
            "expected the same aspect: labels of the very images that the recording has",
        )


def check_polygon(values: Any, size: tuple[int, int], place: str) -> np.ndarray:
    """A polygon of a file, float64 [P, 2].

    Args:
        values: [P, 2] numbers, or x and y in turn.
        size: (width, height) of the image, in the polygon's units.
        place: For messages.

    Raises:
        DataFileError: Not three corners or more, not finite, or outside of the image.
    """
    try:
        points = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataFileError(place, f"has a polygon that is no list of numbers ({error})") from error
    if points.size % 2 or points.size < 6 or not np.isfinite(points).all():
        raise DataFileError(
            place, f"has a polygon of {points.size} numbers; expected x and y of three corners or more"
        )
    points = points.reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = OVERSHOOT * np.asarray(size)
    if (low < -margin).any() or (high > size + margin).any():
        units = "fractions of its sides" if size == (1, 1) else f"pixels of {size[0]:g}x{size[1]:g}"
        raise DataFileError(
            place,
            f"has a polygon outside of the image: x from {low[0]:g} to {high[0]:g}, y from {low[1]:g} to {high[1]:g}; "
            f"expected {units}",
        )
    return points


def reaches_out(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether a polygon has a corner outside of the image, beyond rounding."""
    slack = 1e-3 * np.asarray(size)
    return bool((polygon < -slack).any() or (polygon > size + slack).any())


def runs_of(mask: np.ndarray) -> np.ndarray:
    """Lengths of the runs of a mask bool [H, W], column by column, the first of them outside (maybe 0)."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]]))


def resample(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Labels [Ha, Wa] on another grid [H, W] over the same picture: each pixel takes the one under its centre."""
    if values.shape == shape:
        return values
    rows, columns = (
        ((np.arange(count) + 0.5) * (size / count)).astype(np.int64)
        for count, size in zip(shape, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _pixels(item: AnnotatedObject, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Flat indices of the pixels of the depth image, of `shape`, whose centres lie in an object.

    Args:
        item: The object.
        size: (width, height) of the image that runs are of, in the polygons' units.
        shape: (height, width) of the depth image.
    """
    width, height = size
    if item.runs is not None:
        inside = np.repeat(np.arange(len(item.runs)) % 2 == 1, item.runs)
        return np.flatnonzero(resample(inside.reshape(width, height).T, shape))
    # scikit-image is imported only where it is used.
    from skimage.draw import polygon2mask

    inside = np.zeros(shape, dtype=bool)
    for polygon in item.polygons:
        corners = polygon * (shape[1] / width, shape[0] / height) - 0.5
        inside |= polygon2mask(shape, corners[:, ::-1])
    return np.flatnonzero(inside)
