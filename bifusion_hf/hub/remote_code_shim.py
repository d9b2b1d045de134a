"""Lets a checkpoint load with `trust_remote_code=True`; the code is the package: `pip install bifusion_hf`."""

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionModel, BiFusionProcessor


__all__ = ["BiFusionConfig", "BiFusionForInstanceSegmentation", "BiFusionModel", "BiFusionProcessor"]
