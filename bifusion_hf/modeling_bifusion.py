"""BiFusion: RGB-D frames to 3D object instances, in the shape of a transformers model."""

import math
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_bifusion import BiFusionConfig
from .io.files import DataFileError
from .io.hub_files import checkpoint_place, verify_pulled_weights
from .layers.encoder import BiFusionEncoder, PointEncoding, encode_windows
from .layers.frame_batch import FrameBatch, superpoints_present
from .layers.frame_memory import FrameAdapter, FrameMemory
from .layers.fusion import Fusion, SqueezeExcite
from .layers.geometry import FiLM, GeometricEncoding
from .layers.local_attention import TinySA2D, TinySA3D
from .layers.query_decoder import MergeHead, QueryCrossAttention, QueryDecoder, QueryDecoderLayer, select_queries
from .layers.superpoint_pooling import SuperpointPooling
from .layers.training_progress import OLD_BUFFERS, TrainingProgress, rename_old_buffers
from .losses.criterion import BiFusionCriterion, FusionOutput
from .losses.functional import group_means
from .losses.targets import BatchTargets, batch_targets
from .sparse import StridedConv3d, SubmanifoldConv3d, TransposedConv3d, radius_neighbors, set_sparse_backend


# `load_state_dict` reads the names of release 0.1 by a hook, `from_pretrained` by this.
register_checkpoint_conversion_mapping(
    BiFusionConfig.model_type,
    [WeightRenaming(old, f"training_progress.{name}") for name, old in OLD_BUFFERS.items()],
    overwrite=True,
)


@dataclass
class BiFusionModelOutput(ModelOutput):
    """Point and superpoint features.

    Args:
        point_features (`torch.FloatTensor` of shape `(batch_size, num_points, hidden_size)`):
            Fused features, 0 at padding.
        superpoint_features (`torch.FloatTensor` of shape `(batch_size, num_superpoints, hidden_size)`):
            Pooled features, 0 at padding.
        fusion_weights (`torch.FloatTensor` of shape `(batch_size, num_points, 1)`, *optional*):
            How much of the image feature each point takes; 0 where it is not visible.
        point_weights (`torch.FloatTensor` of shape `(batch_size, num_points, 1)`):
            Weight of each point in its superpoint, 0 at padding.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): Of the image tower.
        attentions (`tuple(torch.FloatTensor)`, *optional*): Of the image tower.
        encoding (`PointEncoding`, *optional*): The checked inputs, and what was found for their real points.
        frame_memory (`FrameMemory`, *optional*): With these frames, where one was given.
    """

    point_features: torch.FloatTensor | None = None
    superpoint_features: torch.FloatTensor | None = None
    fusion_weights: torch.FloatTensor | None = None
    point_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    encoding: PointEncoding | None = None
    frame_memory: FrameMemory | None = None


@dataclass
class BiFusionForInstanceSegmentationOutput(ModelOutput):
    """Predictions of the last head, and what training needs.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Weighted sum of the loss terms, with labels.
        loss_dict (`dict[str, torch.FloatTensor]`, *optional*): The terms, unweighted.
        weighted_loss_dict (`dict[str, torch.FloatTensor]`, *optional*): The terms as they enter `loss`, their sum.
        class_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_labels + 1)`):
            The last column is "no object".
        masks_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_points)`):
            Mask of each query over the points.
        semantic_queries_logits (`torch.FloatTensor` of shape `(batch_size, num_queries, num_semantic_labels + 1)`):
            Semantic class of each query's superpoint.
        query_mask (`torch.BoolTensor` of shape `(batch_size, num_queries)`): False at padding.
        query_superpoints (`torch.LongTensor` of shape `(batch_size, num_queries)`):
            Superpoint of each query, -1 at padding. At inference query j is superpoint j.
        pred_boxes (`torch.FloatTensor` of shape `(batch_size, num_queries, 6)`, *optional*):
            With `use_box_head`: min x, y, z, max x, y, z of each query's whole object, in the coordinates of `points`.
        merge_embeddings (`torch.FloatTensor` of shape `(batch_size, num_queries, decoder_size)`, *optional*):
            With `use_merge_head`: of unit length, 0 at padding.
        frame_memory (`FrameMemory`, *optional*): With these frames, where one was given.
        auxiliary_logits (`list[dict[str, torch.FloatTensor]]`, *optional*): `class_queries_logits`,
            `masks_queries_logits` and perhaps `pred_boxes` of the heads before the last; masks of the first heads are
            over superpoints.
        point_features (`torch.FloatTensor` of shape `(batch_size, num_points, hidden_size)`): Fused features.
        superpoint_features (`torch.FloatTensor` of shape `(batch_size, num_superpoints, hidden_size)`): Pooled.
        fusion_weights (`torch.FloatTensor` of shape `(batch_size, num_points, 1)`, *optional*): As in the base model.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*): Queries before and after each decoder layer.
        attentions (`tuple(torch.FloatTensor)`, *optional*): Cross-attention of each decoder layer.
    """

    loss: torch.FloatTensor | None = None
    loss_dict: dict[str, torch.FloatTensor] | None = None
    weighted_loss_dict: dict[str, torch.FloatTensor] | None = None
    class_queries_logits: torch.FloatTensor | None = None
    masks_queries_logits: torch.FloatTensor | None = None
    semantic_queries_logits: torch.FloatTensor | None = None
    query_mask: torch.BoolTensor | None = None
    query_superpoints: torch.LongTensor | None = None
    pred_boxes: torch.FloatTensor | None = None
    merge_embeddings: torch.FloatTensor | None = None
    frame_memory: FrameMemory | None = None
    auxiliary_logits: list[dict[str, torch.FloatTensor]] | None = None
    point_features: torch.FloatTensor | None = None
    superpoint_features: torch.FloatTensor | None = None
    fusion_weights: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class BiFusionPreTrainedModel(PreTrainedModel):
    """Weight initialisation, loading and saving."""

    config: BiFusionConfig
    base_model_prefix = "model"
    main_input_name = "points"
    input_modalities = ("image", "point_cloud")
    supports_gradient_checkpointing = True
    # Their parts share tensors beside their arguments (voxels, skip connections, masks): each stays on one device.
    _no_split_modules = ["BiFusionModel", "BiFusionEncoder", "QueryDecoder"]
    _supports_sdpa = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As in transformers, and `"sample"` is the checkpoint that the package carries; the weights that it pulls are
        held against the Hub's checksum. They are read, where transformers by itself leaves the model on a mapped file,
        which ends the process when somebody cuts it (`disable_mmap=False` maps).

        Raises:
            DataFileError: The content of the download is another, whether it can be read or not; or the weights have
                other shapes than the configuration says.
        """
        pretrained_model_name_or_path = checkpoint_place(pretrained_model_name_or_path)
        revision, cache_dir = kwargs.get("revision"), kwargs.get("cache_dir")
        kwargs.setdefault("disable_mmap", True)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            raise DataFileError(pretrained_model_name_or_path, f"its weights cannot be read ({error})") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            reason = "its weights do not have the shapes of its config.json, see above"
            raise DataFileError(pretrained_model_name_or_path, reason) from error
        finally:
            if pretrained_model_name_or_path is not None:
                verify_pulled_weights(pretrained_model_name_or_path, revision, cache_dir)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers must expect initialisers that write weights in place.

        In such a model it skips `_init_weights` of modules that own no parameter themselves: FiLM and TinySA would not
        start neutral, and CLIP's attention not with CLIP's widths. Ours all go through `transformers.initialization`.
        """
        return cls.is_remote_code()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: releases carry `hub/remote_code_shim.py`, not copies of the package's modules."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (SubmanifoldConv3d, StridedConv3d, TransposedConv3d)):
            init.normal_(module.kernel, std=module.initial_std)
        elif isinstance(module, (FrameAdapter, GeometricEncoding, FiLM, Fusion, SqueezeExcite, TinySA2D, TinySA3D)):
            module.reset_parameters()
        elif isinstance(module, TrainingProgress):
            init.constant_(module.update, -1)
            init.constant_(module.total, -1)

    def set_training_progress(self, update: int, total: int) -> None:
        """Tells the model how far training is; call it after each optimizer update.

        The gate's warm-up and the stages of the loss schedule follow it; it is saved with the weights. A model that
        was never told has its gate live.

        Args:
            update: Optimizer updates done.
            total: Optimizer updates planned.

        Raises:
            ValueError: `update` is negative or beyond `total`.
        """
        self.base_model.training_progress.set(update, total)


class BiFusionModel(BiFusionPreTrainedModel):
    """Encoder and superpoint pooling: features without a head."""

    def __init__(self, config: BiFusionConfig):
        super().__init__(config)
        self.encoder = BiFusionEncoder(config)
        self.superpoint_pooling = SuperpointPooling(config.hidden_size)
        self.training_progress = TrainingProgress()
        self.register_load_state_dict_pre_hook(rename_old_buffers)
        self.post_init()
        set_sparse_backend(self, config.sparse_backend)

    @can_return_tuple
    def forward(
        self,
        points: torch.FloatTensor,
        point_colors: torch.FloatTensor,
        point_mask: torch.BoolTensor,
        superpoint_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        point_pixels: torch.FloatTensor | None = None,
        point_visible: torch.BoolTensor | None = None,
        camera_rotations: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        output_encoding: bool = False,
        frame_memory: FrameMemory | None = None,
        window_frames: int = 1,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BiFusionModelOutput:
        """Point and superpoint features.

        Args:
            points: [B, N, 3] metres, z up, centred.
            point_colors: [B, N, 3], normalised RGB.
            point_mask: [B, N], False = padding.
            superpoint_ids: [B, N], 0..S-1 in each sample without gaps, -1 at padding.
            pixel_values: [B, 3, H, W], normalised RGB image; needed with an image branch, as are the next two.
            point_pixels: [B, N, 2], place in the image as fractions of width and height.
            point_visible: [B, N], the point is seen in the image.
            camera_rotations: [B, 3, 3], camera axes to point axes; needed with FiLM.
            output_hidden_states: Return the image tower's hidden states; None = as the configuration says.
            output_attentions: Return the image tower's attentions; None = as the configuration says.
            output_encoding: Return the encoding too, which heads and losses need.
            frame_memory: What frame adapters remember of the frames before; None = each frame is a first one.
            window_frames: See `BiFusionForInstanceSegmentation.forward`.
            kwargs: For transformers.

        Raises:
            ValueError: An input is missing or has a wrong shape; the message names it.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        frames = FrameBatch(
            points, point_colors, point_mask, superpoint_ids, pixel_values, point_pixels, point_visible,
            camera_rotations,
        )  # fmt: skip
        frames.check(self.config)
        if window_frames < 1 or frames.batch_size % window_frames:
            raise ValueError(f"window_frames is {window_frames}; expected a divisor of the {frames.batch_size} frames")
        hold_gate = self.training_progress(self.config.gate_warmup_steps)
        outputs = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        if window_frames > 1 and self.config.point_config.use_frame_adapters:
            frames = frames.cast(self.dtype)
            encoding = encode_windows(self.encoder, frames, window_frames, hold_gate, frame_memory, **outputs)
        else:
            encoding = self.encoder(frames.cast(self.dtype), hold_gate, frame_memory, **outputs)
        frames = encoding.frames
        pooled, weights = self.superpoint_pooling(
            frames.real(frames.points),
            encoding.features,
            frames.point_superpoints,
            frames.superpoint_mask.numel(),
        )
        real = frames.superpoint_mask.to(pooled.device)
        pooled = pooled.unflatten(0, real.shape) * real.unsqueeze(2)
        return BiFusionModelOutput(
            point_features=frames.pad(encoding.features),
            superpoint_features=pooled,
            fusion_weights=None if encoding.fusion_weights is None else frames.pad(encoding.fusion_weights),
            point_weights=frames.pad(weights),
            hidden_states=encoding.hidden_states,
            attentions=encoding.attentions,
            encoding=encoding if output_encoding else None,
            frame_memory=encoding.memory,
        )


class BiFusionForInstanceSegmentation(BiFusionPreTrainedModel):
    """BiFusion with its query decoder: 3D instances of an RGB-D frame."""

    _can_record_outputs = {
        "hidden_states": QueryDecoderLayer,
        "attentions": OutputRecorder(QueryCrossAttention, index=1),
    }

    def __init__(self, config: BiFusionConfig):
        super().__init__(config)
        self.model = BiFusionModel(config)
        self.decoder = QueryDecoder(config)
        self.merge_head = None
        if config.use_merge_head is not None:
            self.merge_head = MergeHead(config.decoder_size, config.use_merge_head)
        # Of its loss alone: what the tower learns then passes through no gate, and no matrix that starts at zero.
        self.image_classifier = None
        if config.loss_config.image_semantic_weight:
            self.image_classifier = nn.Linear(config.projection_dim, config.num_semantic_labels)
        self.criterion = BiFusionCriterion(config.loss_config, config.num_labels, config.num_semantic_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    @capture_outputs
    def forward(
        self,
        points: torch.FloatTensor,
        point_colors: torch.FloatTensor,
        point_mask: torch.BoolTensor,
        superpoint_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None = None,
        point_pixels: torch.FloatTensor | None = None,
        point_visible: torch.BoolTensor | None = None,
        camera_rotations: torch.FloatTensor | None = None,
        mask_labels: list[torch.BoolTensor] | None = None,
        class_labels: list[torch.LongTensor] | None = None,
        semantic_labels: torch.LongTensor | None = None,
        query_seeds: torch.LongTensor | None = None,
        loss_counts: dict[str, torch.Tensor] | None = None,
        frame_memory: FrameMemory | None = None,
        object_boxes: list[torch.FloatTensor] | None = None,
        instance_ids: list[torch.LongTensor] | None = None,
        window_frames: int = 1,
        score_threshold: float | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BiFusionForInstanceSegmentationOutput:
        """Predicts instances; with labels, gives the losses too.

        Args:
            points: [B, N, 3] metres, z up, centred.
            point_colors: [B, N, 3], normalised RGB.
            point_mask: [B, N], False = padding.
            superpoint_ids: [B, N], 0..S-1 in each sample without gaps, -1 at padding.
            pixel_values: [B, 3, H, W], normalised RGB image; needed with an image branch, as are the next two.
            point_pixels: [B, N, 2], place in the image as fractions of width and height.
            point_visible: [B, N], the point is seen in the image.
            camera_rotations: [B, 3, 3], camera axes to point axes; needed with FiLM.
            mask_labels: For each sample [M, N], points of each instance.
            class_labels: For each sample [M], label of each instance.
            semantic_labels: [B, N], semantic class of each point, -100 = ignore.
            query_seeds: [B], seeds of the random part of the superpoints that become queries in training.
            loss_counts: What each loss term is divided by instead of this batch's own `count_loss_samples`; for
                gradient accumulation and several processes.
            frame_memory: What frame adapters remember of the frames before, for batches whose sample b goes on with
                sequence b in one world; an empty one at the first frame, None = each frame is a first one.
            object_boxes: For each sample [M, 6], min x, y, z, max x, y, z of each whole object, seen or not.
            instance_ids: For each sample [M], ids that are the same in all frames of a window.
            window_frames: F, of a batch of B / F windows of F consecutive frames each, in one world: first the first
                frames of all windows, then the second ones, and so on. Frame adapters go through them in that order,
                and the losses of the frames are summed.
            score_threshold: What post-processing will drop need not be made: `masks_queries_logits` are -inf where no
                label is more probable than this. Give it the `threshold` of post-processing, and the results are
                those without it. None = all masks.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: An input is missing or has a wrong shape, or there is a threshold beside labels; the message
                names it.
        """
        if score_threshold is not None and mask_labels is not None:
            raise ValueError(f"score_threshold is {score_threshold} beside mask_labels; the losses need all masks")
        base = self.model(
            points, point_colors, point_mask, superpoint_ids, pixel_values, point_pixels, point_visible,
            camera_rotations, output_hidden_states=False, output_attentions=False, output_encoding=True,
            frame_memory=frame_memory, window_frames=window_frames, return_dict=True,
        )  # fmt: skip
        frames = base.encoding.frames
        queries = self._select_queries(frames.superpoint_mask, query_seeds)
        heads, semantic_logits, normed = self.decoder(
            frames, base.superpoint_features, base.point_features, base.point_weights, queries, score_threshold
        )
        merge_embeddings = None if self.merge_head is None else self.merge_head(normed, queries >= 0)
        losses = None
        if mask_labels is not None:
            targets = self._targets(
                mask_labels, class_labels, semantic_labels, superpoint_ids, point_mask, frames.superpoint_mask,
                object_boxes=object_boxes, instance_ids=instance_ids,
            )  # fmt: skip
            losses = self.criterion(
                heads,
                semantic_logits,
                targets,
                queries,
                fusion=self._fusion_output(base.encoding, targets),
                progress=self.model.training_progress.fraction(),
                loss_counts=loss_counts,
                merge_embeddings=merge_embeddings,
                window_frames=window_frames,
            )
        return BiFusionForInstanceSegmentationOutput(
            loss=None if losses is None else losses.loss,
            loss_dict=None if losses is None else losses.loss_dict,
            weighted_loss_dict=None if losses is None else losses.weighted_loss_dict,
            class_queries_logits=heads[-1].class_logits,
            masks_queries_logits=heads[-1].mask_logits,
            semantic_queries_logits=semantic_logits,
            query_mask=queries >= 0,
            query_superpoints=queries,
            auxiliary_logits=[
                {
                    "class_queries_logits": head.class_logits,
                    "masks_queries_logits": head.mask_logits,
                    **({} if head.boxes is None else {"pred_boxes": head.boxes}),
                }
                for head in heads[:-1]
            ],
            pred_boxes=heads[-1].boxes,
            merge_embeddings=merge_embeddings,
            frame_memory=base.frame_memory,
            point_features=base.point_features,
            superpoint_features=base.superpoint_features,
            fusion_weights=base.fusion_weights,
        )

    @torch.no_grad()
    def count_loss_samples(
        self,
        superpoint_ids: torch.LongTensor,
        point_mask: torch.BoolTensor,
        mask_labels: list[torch.BoolTensor],
        class_labels: list[torch.LongTensor],
        semantic_labels: torch.LongTensor | None = None,
        point_visible: torch.BoolTensor | None = None,
        query_seeds: torch.LongTensor | None = None,
        instance_ids: list[torch.LongTensor] | None = None,
        window_frames: int = 1,
        **unused,
    ) -> dict[str, torch.Tensor]:
        """Number of samples that each loss term applies to, without running the network.

        Summed over the micro-batches of an update and over processes it is `loss_counts` of `forward`.

        Args:
            superpoint_ids: As in `forward`, as are the others; the rest of a batch is ignored.
            point_mask: [B, N].
            mask_labels: For each sample [M, N].
            class_labels: For each sample [M].
            semantic_labels: [B, N].
            point_visible: [B, N].
            query_seeds: [B]; in training the choice of queries must be the one that `forward` will make.
            instance_ids: For each sample [M].
            window_frames: As in `forward`.
            unused: Other entries of the batch.

        Raises:
            ValueError: The model is training and `query_seeds` is missing.
        """
        if self.training and query_seeds is None and self.config.min_query_fraction < 1:
            raise ValueError("query_seeds is missing: forward would choose other queries than were counted")
        superpoint_mask = superpoints_present(superpoint_ids, point_mask)
        queries = self._select_queries(superpoint_mask, query_seeds)
        targets = self._targets(
            mask_labels, class_labels, semantic_labels, superpoint_ids, point_mask, superpoint_mask,
            instance_ids=instance_ids,
        )  # fmt: skip
        return self.criterion.count_samples(targets, queries, point_visible, window_frames)

    def _select_queries(self, superpoint_mask: torch.Tensor, seeds: torch.Tensor | None) -> torch.Tensor:
        return select_queries(superpoint_mask, self.config.min_query_fraction if self.training else None, seeds)

    def _targets(
        self, mask_labels, class_labels, semantic_labels, superpoint_ids, point_mask, superpoint_mask, **objects
    ) -> BatchTargets:
        if class_labels is None:
            raise ValueError("class_labels is missing beside mask_labels")
        return batch_targets(
            mask_labels,
            class_labels,
            semantic_labels,
            superpoint_ids,
            point_mask,
            superpoint_mask.shape[1],
            num_labels=self.config.num_labels,
            num_semantic_labels=self.config.num_semantic_labels,
            **objects,
        )

    def _fusion_output(self, encoding: PointEncoding, targets: BatchTargets) -> FusionOutput:
        extra = {}
        if "loss_spatial" in self.criterion.active_terms:
            extra = {
                "voxel_features": encoding.grid.mean(encoding.features),
                "voxel_samples": encoding.grid.coordinates[:, 0].long(),
                "neighbor_pairs": radius_neighbors(encoding.grid, 1),
            }
        if self.image_classifier is not None:
            size = targets.superpoint_mask.shape
            rows = targets.point_superpoints(encoding.frames.point_visible)
            means = group_means(encoding.image_embeds, rows, size.numel())
            # Features of length 1 in D dimensions would need weights of a size that training takes long to reach.
            scaled = (math.sqrt(means.shape[1]) * means).to(self.image_classifier.weight.dtype)
            extra["image_semantic_logits"] = self.image_classifier(scaled).unflatten(0, size)
        return FusionOutput(
            point_visible=encoding.frames.point_visible,
            features_3d=encoding.point_embeds,
            features_2d=encoding.image_embeds,
            fused_features=encoding.features,
            fusion_weights=encoding.fusion_weights,
            **extra,
        )
