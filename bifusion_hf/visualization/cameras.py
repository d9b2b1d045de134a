"""Nominal intrinsics of common RGB-D cameras, by name, for frames whose own calibration is not at hand.

Each camera of a kind differs from these by a few percent, which bends the points and shifts their sizes by as much;
where the camera reports its own calibration, that is the one to use.
"""

from dataclasses import dataclass

import numpy as np

from ..data.frames import scale_intrinsics


@dataclass(frozen=True)
class ImageMode:
    """A kind of image that a camera gives: its size and fx, fy, cx, cy in pixels, pixel centres at integers."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def has_aspect_of(self, width: int, height: int) -> bool:
        """Whether an image of that size can be a resized one of this mode; within 1 %, as 848x480 is of 16:9."""
        return abs(width * self.height / (height * self.width) - 1) < 0.01


@dataclass(frozen=True)
class CameraPreset:
    """A camera by its name.

    Args:
        modes: Its kinds of image; no two of the same aspect.
        depth_scale: Units per metre of the 16-bit depth images that its usual software writes.
        source: Where the numbers come from.
    """

    modes: tuple[ImageMode, ...]
    depth_scale: float
    source: str


CAMERA_PRESETS: dict[str, CameraPreset] = {
    "Intel RealSense D435": CameraPreset(
        # Depth aligned to colour. 4:3 images are the middle of the 16:9 sensor, scaled by 480 / 1080.
        (
            ImageMode(1920, 1080, 1386.0, 1386.0, 959.5, 539.5),
            ImageMode(640, 480, 616.0, 616.0, 319.5, 239.5),
        ),
        1000.0,
        "colour field of view of 69.4 degrees in Intel's D400 series data sheet",
    ),
    "Azure Kinect": CameraPreset(
        # Depth aligned to colour (16:9; 4:3 is the same width with more rows), or colour to the narrow depth image.
        (
            ImageMode(1280, 720, 601.2, 600.9, 637.8, 363.8),
            ImageMode(2048, 1536, 961.9, 961.4, 1020.8, 774.4),
            ImageMode(640, 576, 504.0, 504.0, 319.5, 287.5),
        ),
        1000.0,
        "example calibration of Open3D's Azure Kinect reader; factory calibration of the narrow depth mode",
    ),
    "Kinect v1": CameraPreset(
        (ImageMode(640, 480, 525.0, 525.0, 319.5, 239.5),),
        1000.0,
        "default of OpenNI and of Open3D (PrimeSenseDefault)",
    ),
    "Kinect v2": CameraPreset(
        # Colour aligned to depth, or depth to colour.
        (
            ImageMode(512, 424, 365.456, 365.456, 254.878, 205.395),
            ImageMode(1920, 1080, 1059.972, 1059.972, 975.719, 545.953),
        ),
        1000.0,
        "Open3D (Kinect2DepthCameraDefault, Kinect2ColorCameraDefault)",
    ),
    "iPhone LiDAR": CameraPreset(
        # ARKit's depth of 256 x 192 shows the same field as its colour images.
        (ImageMode(1920, 1440, 1465.0, 1465.0, 959.5, 719.5),),
        1000.0,
        "calibration that an iPhone reports, from Apple's developer forum (thread 705386)",
    ),
    "ScanNet": CameraPreset(
        (ImageMode(640, 480, 577.87, 577.87, 319.5, 239.5),),
        1000.0,
        "intrinsic_depth.txt of most ScanNet scans",
    ),
}


def nominal_intrinsics(name: str, width: int, height: int) -> np.ndarray:
    """Nominal intrinsics of a camera for an image of a given size, float64 [3, 3].

    Args:
        name: Key of `CAMERA_PRESETS`.
        width: Of the depth image, in pixels.
        height: Of the depth image.

    Raises:
        ValueError: Unknown camera, or it gives no image of that aspect.
    """
    if name not in CAMERA_PRESETS:
        raise ValueError(f"camera is {name!r}; expected one of {', '.join(CAMERA_PRESETS)}")
    modes = CAMERA_PRESETS[name].modes
    for mode in modes:
        if mode.has_aspect_of(width, height):
            matrix = np.array([[mode.fx, 0, mode.cx], [0, mode.fy, mode.cy], [0, 0, 1]])
            return scale_intrinsics(matrix, width / mode.width, height / mode.height)
    sizes = ", ".join(f"{mode.width}x{mode.height}" for mode in modes)
    raise ValueError(f"{name}: depth is {width}x{height}; expected the aspect of {sizes}, or give fx, fy, cx, cy")
