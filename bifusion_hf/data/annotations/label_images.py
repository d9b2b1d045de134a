"""Labels as pictures: a folder with the instances of each image, and one with their classes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...io.files import DataFileError
from ...labels import NONE
from ..frame_files import read_label_map
from ..recordings.base import image_files
from .base import DrawnLabels, check_size, resample


class LabelImages:
    """Label images by the images' names; see `Annotations`.

    Pictures have 0 where there is nothing; `.npy` arrays have -1 there, and numbers from 0.

    Args:
        instances: Folder of the pictures with the number of an object at each pixel.
        semantics: Folder of the pictures with the number of a class at each pixel, of the same names; None = objects
            have no classes.
        names: Names of the classes by their number.
        numbered: The numbers are those in the files; else they count from 0, and pictures have one added.

    Raises:
        DataFileError: A folder is missing or empty, or the two have files of other names.
    """

    def __init__(
        self,
        instances: str | Path,
        semantics: str | Path | None = None,
        names: Mapping[int, str] | None = None,
        numbered: bool = False,
    ):
        self.instances = image_files(Path(instances))
        self.semantics: dict[str, Path] | None = None
        if semantics is not None:
            self.semantics = image_files(Path(semantics))
            other = sorted(self.instances.keys() ^ self.semantics.keys())
            if other:
                raise DataFileError(semantics, f"and {instances} do not both have {', '.join(other[:5])}")
        self.classes, self.numbered = dict(names or {}), numbered
        self.names, self.labels = list(self.instances), list(self.classes.values())

    def files(self) -> Iterator[Path]:
        """See `Annotations`."""
        yield from self.instances.values()
        yield from () if self.semantics is None else self.semantics.values()

    def draw(
        self, name: str, image_size: tuple[int, int], shape: tuple[int, int], classes: Mapping[str, int]
    ) -> DrawnLabels:
        """See `Annotations`. An object has the class of most of its pixels."""
        instance = _read(self.instances[name], image_size, shape)
        if self.semantics is None:
            return DrawnLabels(instance, None, ["objects"] * len(np.unique(instance[instance >= 0])))
        path = self.semantics[name]
        values = _read(path, image_size, shape)
        # A picture's numbers were read with one taken off.
        added = -NONE if path.suffix != ".npy" else 0
        semantic = np.full(shape, NONE, dtype=np.int32)
        for value in np.unique(values[values >= 0]):
            number = int(value) + added * self.numbered
            if number not in self.classes:
                raise DataFileError(path, f"has the number {value + added}, which is no class of {self.classes}")
            semantic[values == value] = classes[self.classes[number]]
        drawn = DrawnLabels(instance, semantic)
        name_of = {index: label for label, index in classes.items()}
        for number in np.unique(instance[instance >= 0]):
            inside = instance == number
            indices, counts = np.unique(semantic[inside & (semantic >= 0)], return_counts=True)
            if not len(indices):
                drawn.notes.append("objects without a class, left out of training")
                continue
            semantic[inside] = indices[counts.argmax()]
            drawn.notes.append(f"objects of {name_of[int(indices[counts.argmax()])]}")
        return drawn


def _read(path: Path, image_size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Numbers of a label image on the depth image's grid, int32, -1 = none."""
    values = read_label_map(path)
    check_size((values.shape[1], values.shape[0]), image_size, path)
    return resample(values, shape)
