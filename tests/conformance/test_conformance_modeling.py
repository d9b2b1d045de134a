"""transformers' own tests of models and configurations."""

import unittest
import unittest.mock

import pytest
import torch
from transformers.testing_utils import torch_device
from transformers_tests import import_common

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionModel


common = import_common("test_modeling_common")
configuration = import_common("test_configuration_common")

BATCH_SIZE = 7
INPUTS = (
    "point_colors",
    "point_mask",
    "superpoint_ids",
    "pixel_values",
    "point_pixels",
    "point_visible",
    "camera_rotations",
)
LABELS = ("mask_labels", "class_labels", "semantic_labels")


class BiFusionModelTester:
    """Configuration, inputs and expectations; `parent` is the test case."""

    batch_size = BATCH_SIZE
    is_training = True
    num_labels = 3
    num_superpoints = 10
    num_hidden_layers = 2
    num_attention_heads = 2
    hidden_size = 16

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        vision_config = {
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden_size,
            "intermediate_size": 32,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "image_size": 16,
            "patch_size": 8,
        }
        return self.parent.small_config(
            "residual",
            num_labels=self.num_labels,
            decoder_size=self.hidden_size,
            decoder_layers=self.num_hidden_layers,
            decoder_attention_heads=self.num_attention_heads,
            decoder_mask_levels=["superpoint", "point", "point"],
            vision_config=vision_config,
        )

    def make_inputs(self):
        num_points = 160
        batch = self.parent.make_batch(
            num_points=(num_points,) * BATCH_SIZE, image_size=(16, 24), instances=2, classes=self.num_labels
        )
        # Every sample has all superpoints, so that a batch has as many queries as a sample.
        superpoint_ids = torch.arange(num_points) % self.num_superpoints
        batch["superpoint_ids"] = superpoint_ids.expand(BATCH_SIZE, -1).contiguous()
        return {
            name: value.to(torch_device) if torch.is_tensor(value) else [entry.to(torch_device) for entry in value]
            for name, value in batch.items()
        }

    def prepare_config_and_inputs_for_common(self):
        inputs = self.make_inputs()
        return self.get_config(), {name: value for name, value in inputs.items() if name not in LABELS}


class TowerTester(BiFusionModelTester):
    """The base model returns the states of the image tower, and no loss."""

    is_training = False
    seq_length = 2 * 3 + 1


class DecoderTester(BiFusionModelTester):
    """The model with its head returns the states of the query decoder."""

    seq_length = BiFusionModelTester.num_superpoints


@pytest.fixture(scope="class")
def factories(request, small_config, make_batch):
    request.cls.small_config = staticmethod(small_config)
    request.cls.make_batch = staticmethod(make_batch)


class CommonTests(common.ModelTesterMixin):
    additional_model_inputs = list(INPUTS)
    test_resize_embeddings = False  # There is no vocabulary.
    test_can_init_all_missing_weights_before_2023 = True
    _is_composite = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = configuration.ConfigTester(self, BiFusionConfig, has_text_modality=False, hidden_size=256)

    @unittest.skip(reason="Points are the main input: they are averaged in voxels, no module embeds them")
    def test_model_get_set_embeddings(self):
        pass

    def test_can_load_ignoring_mismatched_shapes(self):
        """The common test sets every `_std` as if it were an initialisation's; `image_std` is that of pixels."""
        zero_init = common._config_zero_init

        def keeping_image_std(config):
            keys = [key for key in config if key != "image_std"]
            with unittest.mock.patch.object(type(config), "__iter__", lambda _: iter(keys)):
                return zero_init(config)

        with unittest.mock.patch.object(common, "_config_zero_init", keeping_image_std):
            super().test_can_load_ignoring_mismatched_shapes()


@pytest.mark.usefixtures("factories")
class BiFusionModelTest(CommonTests, unittest.TestCase):
    all_model_classes = (BiFusionModel,)
    model_tester_class = TowerTester

    def test_config(self):
        self.config_tester.run_common_tests()


@pytest.mark.usefixtures("factories")
class BiFusionForInstanceSegmentationTest(CommonTests, unittest.TestCase):
    all_model_classes = (BiFusionForInstanceSegmentation,)
    model_tester_class = DecoderTester

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels:
            labels = self.model_tester.make_inputs()
            inputs.update({name: labels[name] for name in LABELS})
        return inputs

    def test_model_outputs_equivalence(self):
        """The common test subtracts outputs, which torch refuses for the bool `query_mask`: it gets integers."""
        forward = BiFusionForInstanceSegmentation.forward

        def with_integers(model, *args, **kwargs):
            outputs = forward(model, *args, **kwargs)
            if isinstance(outputs, tuple):
                return tuple(integers(value) for value in outputs)
            outputs.query_mask = integers(outputs.query_mask)
            return outputs

        def integers(value):
            return value.long() if torch.is_tensor(value) and value.dtype == torch.bool else value

        with unittest.mock.patch.object(BiFusionForInstanceSegmentation, "forward", with_integers):
            super().test_model_outputs_equivalence()
