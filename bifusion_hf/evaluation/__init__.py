from .evaluator import evaluate_model
from .instance_average_precision import InstanceAveragePrecision
from .predictions import PredictionFile, PredictionWriter, evaluate_predictions
from .results import format_results, headline, load_results, model_index_entries, save_results
from .scene_average_precision import SceneAveragePrecision
from .semantic_mean_iou import SemanticMeanIoU


__all__ = [
    "InstanceAveragePrecision",
    "PredictionFile",
    "PredictionWriter",
    "SceneAveragePrecision",
    "SemanticMeanIoU",
    "evaluate_model",
    "evaluate_predictions",
    "format_results",
    "headline",
    "load_results",
    "model_index_entries",
    "save_results",
]
