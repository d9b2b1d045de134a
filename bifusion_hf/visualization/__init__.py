"""Looking at frames and predictions: overlay pictures, coloured point clouds, segments as JSON."""

from .colors import instance_color, instance_colors
from .overlay import draw_comparison, draw_instances, segment_name, side_by_side
from .ply import color_by_instance, write_ply
from .segments import segments_to_json


__all__ = [
    "color_by_instance",
    "draw_comparison",
    "draw_instances",
    "instance_color",
    "instance_colors",
    "segment_name",
    "segments_to_json",
    "side_by_side",
    "write_ply",
]
