from .instance_average_precision import InstanceAveragePrecision
from .semantic_mean_iou import SemanticMeanIoU


__all__ = ["InstanceAveragePrecision", "SemanticMeanIoU"]
