"""Parts of a mask that lie apart in space: touching points and connected parts, in C or by scipy."""

from .separation import separate_parts, touching_points


__all__ = ["separate_parts", "touching_points"]
