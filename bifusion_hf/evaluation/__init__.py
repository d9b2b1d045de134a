from .instance_average_precision import InstanceAveragePrecision
from .results import format_results, headline, load_results, model_index_entries, save_results
from .semantic_mean_iou import SemanticMeanIoU


__all__ = [
    "InstanceAveragePrecision",
    "SemanticMeanIoU",
    "format_results",
    "headline",
    "load_results",
    "model_index_entries",
    "save_results",
]
