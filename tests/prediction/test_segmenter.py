import pytest
import torch

from bifusion_hf.prediction.segmenter import load_segmenter


@pytest.mark.parametrize(
    ("wanted", "has_gpu", "device"), [(None, True, "cuda"), (None, False, "cpu"), ("cpu", True, "cpu")]
)
def test_a_gpu_is_taken_where_there_is_one_and_no_other_was_asked_for(monkeypatch, wanted, has_gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr("bifusion_hf.hub.pretrained.load_pretrained", lambda name: (f"model of {name}", "processor"))
    monkeypatch.setattr("bifusion_hf.pipeline_bifusion.RGBDInstanceSegmentationPipeline", lambda **options: options)
    found = load_segmenter("here", wanted)
    assert found == {"model": "model of here", "processor": "processor", "device": torch.device(device)}
