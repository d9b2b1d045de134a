"""RGB-D frames to 3D object instances: CLIP image features fused with sparse-convolution point features."""

from .import_utils import explain_torchvision_misfit, import_for_command, without_garbage_collection


with without_garbage_collection(), import_for_command(), explain_torchvision_misfit():
    from transformers import AutoConfig, AutoModel, AutoModelForInstanceSegmentation, AutoProcessor

    from .configuration_bifusion import BiFusionConfig, BiFusionPointConfig
    from .data.frames import RGBDFrame
    from .evaluation import InstanceAveragePrecision, SceneAveragePrecision
    from .modeling_bifusion import (
        BiFusionForInstanceSegmentation,
        BiFusionForInstanceSegmentationOutput,
        BiFusionModel,
        BiFusionModelOutput,
        BiFusionPreTrainedModel,
    )
    from .pipeline_bifusion import register as _register_pipeline
    from .processing_bifusion import BiFusionProcessor
    from .results import InstanceSegmentation
    from .scenes import SceneSession
    from .scenes.pipeline import register as _register_scene_pipeline
    from .version import __version__
    from .weights import WeightLoadReport, load_clip_weights, load_sv3d_weights, load_vision_weights


AutoConfig.register(BiFusionPointConfig.model_type, BiFusionPointConfig, exist_ok=True)
AutoConfig.register(BiFusionConfig.model_type, BiFusionConfig, exist_ok=True)
AutoModel.register(BiFusionConfig, BiFusionModel, exist_ok=True)
AutoModelForInstanceSegmentation.register(BiFusionConfig, BiFusionForInstanceSegmentation, exist_ok=True)
AutoProcessor.register(BiFusionConfig, BiFusionProcessor, exist_ok=True)
_register_pipeline()
_register_scene_pipeline()

__all__ = [
    "BiFusionConfig",
    "BiFusionForInstanceSegmentation",
    "BiFusionForInstanceSegmentationOutput",
    "BiFusionModel",
    "BiFusionModelOutput",
    "BiFusionPointConfig",
    "BiFusionPreTrainedModel",
    "BiFusionProcessor",
    "InstanceAveragePrecision",
    "InstanceSegmentation",
    "RGBDFrame",
    "SceneAveragePrecision",
    "SceneSession",
    "WeightLoadReport",
    "__version__",
    "load_clip_weights",
    "load_sv3d_weights",
    "load_vision_weights",
]
