"""ScanNet: readers of its published formats, and the preparation of ScanNet200 as a data set of frames."""

from .preparation import prepare_scannet200
from .sens import SensFile


__all__ = ["SensFile", "prepare_scannet200"]
