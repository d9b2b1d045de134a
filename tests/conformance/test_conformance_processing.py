"""transformers' own tests of processors; those of text, video, audio and chat templates skip themselves."""

import unittest

from frame_factory import make_frame
from transformers_tests import import_common

from bifusion_hf import BiFusionProcessor
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS


common = import_common("test_processing_common")


class BiFusionProcessorTest(common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = BiFusionProcessor

    @staticmethod
    def prepare_processor_dict():
        return {"num_points": 900, "image_size": [48, 64], "label_names": ["chair", "table"], "sampling_seed": 3}

    def test_model_input_names(self):
        """Overridden: depth and intrinsics are needed beside images."""
        frame = make_frame(48, 64)
        batch = self.get_processor()(images=frame.image, depth=frame.depth, intrinsics=frame.intrinsics)
        self.assertEqual(self.get_processor().model_input_names, list(FORWARD_INPUTS))
        self.assertLessEqual(set(FORWARD_INPUTS), set(batch))

    def test_init_arguments_not_in_processor_kwargs(self):
        """The image statistics are the processor's own: it has no image processor inside that would hold them."""
        with self.assertRaisesRegex(AssertionError, r"^\{'image_(mean|std)', 'image_(mean|std)'\} is not false"):
            super().test_init_arguments_not_in_processor_kwargs()

    def test_call_arguments_not_in_processor_kwargs(self):
        """`return_tensors` is an argument, so that its default and its values are documented; no other may be."""
        with self.assertRaisesRegex(AssertionError, r"^\{'return_tensors'\} is not false"):
            super().test_call_arguments_not_in_processor_kwargs()

    def test_call_arguments_default_none(self):
        """`return_tensors` is "pt" by default: the model takes nothing else; no other default may be set."""
        with self.assertRaisesRegex(AssertionError, r"^\{'return_tensors'\} is not false"):
            super().test_call_arguments_default_none()

    @unittest.skip(reason="There is no text, and no other modality with keyword arguments of its own")
    def test_flat_kwarg_applied_when_modality_dict_lacks_it(self):
        pass
