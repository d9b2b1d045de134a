"""Joint augmentation of a prepared sample: points, image, and what ties them together.

Moving the points never touches `point_pixels`; flipping or cropping the image changes the image and `point_pixels`
together. `camera_rotation` follows every rotation and mirroring, of the points or of the image, so that it keeps
mapping the axes of the image (x right, y down, z into it) to those of the points.

The point part has ESAM's values (flips, rotation, scale, translation, elastic distortion). What is off by default is
for frames of other cameras than those of the training frames: other colours, which image and points share, other
directions of "up", other sizes, and what is done to a frame before its points are taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from .distortion import LUMA, apply_colors, cut_holes, hue_rotation, noisy_depth, recolor_objects, saturation_matrix
from .frames import RGBDFrame


Sample = dict[str, Any]


@dataclass(frozen=True)
class AugmentationConfig:
    """What is augmented and how much; each part is off at the value stated.

    Args:
        flip_probability: Of mirroring the points along x, and again along y; 0 = off.
        rotation_range: Half width in radians of the rotation about z; 0 = off.
        scale_range: Bounds of the scale; (1, 1) = off.
        translation_std: Standard deviation in metres, each axis; 0 = off.
        elastic_probability: Of the elastic distortion; 0 = off.
        elastic_granularity: Grid cells of its passes, in units of `elastic_voxel_size`.
        elastic_magnitude: Strengths of its passes, in units of `elastic_voxel_size`.
        elastic_voxel_size: Metres.
        image_flip_probability: Of mirroring the image left to right; 0 = off.
        crop_probability: Of a crop, resized back to the image's size; 0 = off.
        crop_scale: Bounds of the crop's side, as a fraction of the image's; the aspect is kept.
        brightness: Half width of the factor around 1; 0 = off.
        contrast: As `brightness`, around the mean grey.
        saturation: As `brightness`, around the pixel's own grey.
        pose_dropout: Probability of taking a frame's pose away, so that its points are as those of a frame without
            one; 0 = off.
        depth_noise_probability: Of noise of the depth; 0 = off.
        depth_noise: Largest standard deviation at one metre, in metres; it grows with the square of the depth.
        hole_probability: Of holes in the depth; 0 = off.
        hole_share: Largest part of the picture without depth.
        recolor_probability: Of other colours for objects of a frame; 0 = off.
        recolor_share: Probability of each object then.
        tilt_probability: Of turning the points about a horizontal axis; 0 = off.
        tilt_range: Largest angle in radians.
        rescale_probability: Of another size of the scene; 0 = off.
        rescale_range: Bounds of its factor, whose logarithm is uniform.
        color_probability: Of another colouring of image and points together: what follows; 0 = off.
        color_cast: Standard deviation of the logarithm of each channel's gain.
        color_exposure: Largest logarithm of the exponent (gamma) and of the common gain.
        color_contrast: As `contrast`.
        color_saturation: As `saturation`.
        hue_probability: Of turning the hue of the whole frame by any angle, where it is coloured otherwise.
        grey_probability: Of a frame without colour, where it is coloured otherwise.

    Raises:
        ValueError: A value is out of range.
    """

    flip_probability: float = 0.5
    rotation_range: float = np.pi
    scale_range: tuple[float, float] = (0.8, 1.2)
    translation_std: float = 0.1
    elastic_probability: float = 0.5
    elastic_granularity: tuple[float, ...] = (6.0, 20.0)
    elastic_magnitude: tuple[float, ...] = (40.0, 160.0)
    elastic_voxel_size: float = 0.02
    image_flip_probability: float = 0.5
    crop_probability: float = 0.5
    crop_scale: tuple[float, float] = (0.7, 1.0)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    pose_dropout: float = 0.0
    depth_noise_probability: float = 0.0
    depth_noise: float = 0.005
    hole_probability: float = 0.0
    hole_share: float = 0.3
    recolor_probability: float = 0.0
    recolor_share: float = 0.5
    tilt_probability: float = 0.0
    tilt_range: float = np.pi / 6
    rescale_probability: float = 0.0
    rescale_range: tuple[float, float] = (1 / 3, 2.0)
    color_probability: float = 0.0
    color_cast: float = 0.2
    color_exposure: float = 0.4
    color_contrast: float = 0.3
    color_saturation: float = 0.5
    hue_probability: float = 0.2
    grey_probability: float = 0.15

    def __post_init__(self):
        for name in self.__dataclass_fields__:
            if name.endswith(("_probability", "_dropout", "recolor_share")):
                self._check(name, 0 <= getattr(self, name) <= 1, "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "color_contrast", "color_saturation", "hole_share"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number in [0, 1)")
        lengths = ("rotation_range", "translation_std", "depth_noise", "tilt_range", "color_cast", "color_exposure")
        for name in lengths:
            self._check(name, getattr(self, name) >= 0, "a number that is not negative")
        for name in ("scale_range", "crop_scale", "rescale_range"):
            bounds = getattr(self, name)
            self._check(name, len(bounds) == 2 and 0 < bounds[0] <= bounds[1], "two positive bounds in order")
        self._check("crop_scale", self.crop_scale[1] <= 1, "at most 1")
        self._check("elastic_voxel_size", self.elastic_voxel_size > 0, "a positive length")
        same_length = len(self.elastic_granularity) == len(self.elastic_magnitude)
        self._check("elastic_granularity", same_length, f"as many as elastic_magnitude {self.elastic_magnitude}")

    def _check(self, name: str, good: bool, expected: str):
        if not good:
            raise ValueError(f"AugmentationConfig: {name} is {getattr(self, name)}; expected {expected}")


def resize_image(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Antialiased bicubic resize of (a part of) an image; returned as it is where nothing changes.

    Args:
        image: uint8 [H, W, 3].
        size: (height, width) of the result.
        box: (left, top, right, bottom) of the part, in pixel edges: the whole image is (0, 0, W, H).

    Returns:
        uint8 [*size, 3].
    """
    if box is None and tuple(size) == image.shape[:2]:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def elastic_displacement(points: np.ndarray, cell: float, magnitude: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random displacement field at the points, float64 [N, 3].

    Gaussian noise on a grid, blurred twice by a 3x3x3 box, interpolated trilinearly (Graham et al., "3D Semantic
    Segmentation with Submanifold Sparse Convolutional Networks", CVPR 2018, and its successors).

    Args:
        points: [N, 3].
        cell: Edge of a grid cell, in the unit of the points.
        magnitude: Factor of the blurred unit noise, in the unit of the points.
        rng: Source of the noise.
    """
    from scipy.ndimage import map_coordinates, uniform_filter

    # Cells are laid out around the origin and reach one cell beyond the cloud, so that all points interpolate.
    half = (np.abs(points).max(axis=0) / cell).astype(int) + 2
    noise = rng.standard_normal((3, *(2 * half + 1)))
    for _ in range(2):
        noise = uniform_filter(noise, size=(1, 3, 3, 3), mode="constant")
    places = (points / cell + half).T
    field = [map_coordinates(component, places, order=1) for component in noise]
    return np.stack(field, axis=1) * magnitude


def horizontal_rotation(direction: float, angle: float) -> np.ndarray:
    """Rotation [3, 3] by `angle` about the horizontal axis at `direction` from x; radians."""
    x, y = np.cos(direction), np.sin(direction)
    cross = np.array([[0, 0, y], [0, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Draws only where there is a choice."""
    return probability > 0 and rng.random() < probability


def _move_points(sample: Sample, matrix: np.ndarray) -> None:
    """Applies an orthogonal matrix to points and camera axes."""
    sample["points"] = sample["points"] @ matrix.T.astype(np.float32)
    sample["camera_rotation"] = (matrix @ sample["camera_rotation"]).astype(np.float32)


def _flip_image(sample: Sample) -> None:
    sample["image"] = np.ascontiguousarray(sample["image"][:, ::-1])
    sample["point_pixels"] = sample["point_pixels"] * np.array([-1, 1], np.float32) + np.array([1, 0], np.float32)
    # To the right in the mirrored image is to the left of the camera.
    sample["camera_rotation"] = sample["camera_rotation"] * np.array([-1, 1, 1], np.float32)


def _crop_image(sample: Sample, scale: float, place: np.ndarray) -> None:
    """Cuts out a window of `scale` times the image's sides at `place` in [0, 1]^2 and resizes it to the full size.

    A window without any visible point is left alone: such an image could teach nothing.
    """
    height, width = sample["image"].shape[:2]
    origin = (1 - scale) * place
    pixels = (sample["point_pixels"] - origin) / scale
    visible = sample["point_visible"] & ((pixels >= 0) & (pixels <= 1)).all(axis=1)
    if not visible.any():
        return
    box = (origin[0] * width, origin[1] * height, (origin[0] + scale) * width, (origin[1] + scale) * height)
    sample["image"] = resize_image(sample["image"], (height, width), box)
    sample["point_visible"] = visible
    sample["point_pixels"] = np.clip(pixels, 0, 1).astype(np.float32)


class JointAugmentation:
    """Draws and applies an augmentation; the same generator state gives the same result.

    What is off by default draws nothing while it is off, so that the draws of the rest stay as they are.

    Args:
        config: What to do; the defaults of `AugmentationConfig` if None.
    """

    def __init__(self, config: AugmentationConfig | None = None):
        self.config = config or AugmentationConfig()

    def frame(self, frame: RGBDFrame, rng: np.random.Generator) -> RGBDFrame:
        """What is done before points are taken: the pose taken away, other colours of objects, noise and holes.

        Args:
            frame: The frame; left untouched.
            rng: Source of all draws.

        Returns:
            A new frame, or the one given where nothing changes. Labels and superpoints stay, also where a hole is.
        """
        config, changes = self.config, {}
        if _happens(config.pose_dropout, rng):
            changes["camera_to_world"] = None
        if frame.instance is not None and _happens(config.recolor_probability, rng):
            changes["image"] = recolor_objects(frame.image, frame.instance, config.recolor_share, rng)
        if _happens(config.depth_noise_probability, rng):
            changes["depth"] = noisy_depth(frame.depth, config.depth_noise * rng.random(), rng)
        if _happens(config.hole_probability, rng):
            changes["depth"] = cut_holes(changes.get("depth", frame.depth), config.hole_share * rng.random(), rng)
        return replace(frame, **changes) if changes else frame

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """`geometric`, then `photometric`; the sample given is left untouched."""
        return self.photometric(self.geometric(sample, rng), rng)

    def geometric(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """`move_points`, then `move_image`.

        Args:
            sample: A sample of `BiFusionProcessor.prepare_frame`.
            rng: Source of all draws.

        Returns:
            A new sample; arrays that did not change are shared with the one given. `point_offset` is kept, though it
            no longer leads back to the input's frame.
        """
        return self.move_image(self.move_points(sample, rng), rng)

    def move_points(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """Moves `points` [N, 3], and turns `camera_rotation` [3, 3], or [F, 3, 3] of F cameras, with them."""
        config, sample = self.config, dict(sample)
        for axis in range(2):
            if rng.random() < config.flip_probability:
                mirror = np.eye(3)
                mirror[axis, axis] = -1
                _move_points(sample, mirror)
        if config.rotation_range > 0:
            angle = rng.uniform(-config.rotation_range, config.rotation_range)
            cos, sin = np.cos(angle), np.sin(angle)
            _move_points(sample, np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]))
        if _happens(config.tilt_probability, rng):
            _move_points(sample, horizontal_rotation(rng.uniform(0, 2 * np.pi), rng.uniform(0, config.tilt_range)))
        points = sample["points"].astype(np.float64)
        points *= rng.uniform(*config.scale_range)
        points += rng.normal(0, config.translation_std, 3)
        if rng.random() < config.elastic_probability:
            unit = config.elastic_voxel_size
            for cell, magnitude in zip(config.elastic_granularity, config.elastic_magnitude, strict=True):
                points = points + elastic_displacement(points, cell * unit, magnitude * unit, rng)
        # Last, so that the displacements, which are lengths, scale with the scene.
        if _happens(config.rescale_probability, rng):
            points = points * np.exp(rng.uniform(*np.log(config.rescale_range)))
        sample["points"] = points.astype(np.float32)
        return sample

    def move_image(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """Flips and crops the image, and `point_pixels` and `camera_rotation` with it."""
        config, sample = self.config, dict(sample)
        if sample.get("image") is not None:
            if rng.random() < config.image_flip_probability:
                _flip_image(sample)
            if rng.random() < config.crop_probability:
                _crop_image(sample, rng.uniform(*config.crop_scale), rng.random(2))
        return sample

    def photometric(self, sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
        """Colours image and points anew, together; jitters brightness, contrast and saturation of the image alone.

        It comes after the alignment check, which compares the two.
        """
        config, sample = self.config, dict(sample)
        if _happens(config.color_probability, rng):
            self._color(sample, rng)
        if sample.get("image") is None or not (config.brightness or config.contrast or config.saturation):
            return sample
        widths = np.array([config.brightness, config.contrast, config.saturation])
        brightness, contrast, saturation = (1 + widths * rng.uniform(-1, 1, 3)).astype(np.float32)
        image = sample["image"].astype(np.float32) * brightness
        mean_grey = image.reshape(-1, 3).mean(axis=0) @ LUMA
        image = mean_grey + (image - mean_grey) * contrast
        grey = (image @ LUMA)[..., None]
        image = grey + (image - grey) * saturation
        sample["image"] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        return sample

    def _color(self, sample: Sample, rng: np.random.Generator) -> None:
        config = self.config
        gamma, gain = np.exp(config.color_exposure * rng.uniform(-1, 1, 2))
        gains = gain * np.exp(rng.normal(0, config.color_cast, 3))
        contrast, factor = 1 + np.array([config.color_contrast, config.color_saturation]) * rng.uniform(-1, 1, 2)
        matrix = np.eye(3)
        if rng.random() < config.hue_probability:
            matrix = hue_rotation(rng.uniform(-np.pi, np.pi))
        grey = rng.random() < config.grey_probability
        # Hue and saturation are of the scene, the cast of its light, exposure and contrast of the camera.
        matrix = contrast * (gains[:, None] * saturation_matrix(0.0 if grey else factor)) @ matrix
        offset = (1 - contrast) * 127.5
        # One map for both, or they would no longer belong together.
        for name in ("image", "point_rgb"):
            if sample.get(name) is not None:
                sample[name] = apply_colors(sample[name], matrix, offset, gamma)
