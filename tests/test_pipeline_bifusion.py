import contextlib
import copy
import io
import json
import warnings
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from frame_factory import make_frame
from launch_counter import DEVICE, LaunchCounter, move
from PIL import Image
from transformers import AutoProcessor, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from bifusion_hf import BiFusionConfig, BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.boxes import bounding_box
from bifusion_hf.data.frames import frame_features, frame_from_row, frame_to_row, load_frames
from bifusion_hf.layers.frame_batch import FORWARD_INPUTS
from bifusion_hf.pipeline_bifusion import TASK, RGBDInstanceSegmentationPipeline, register
from bifusion_hf.postprocessing import SCORE_THRESHOLD


SUPERPOINTS = np.arange(96 * 128).reshape(96, 128) // 128 // 12 * 8 + np.arange(96 * 128).reshape(96, 128) % 128 // 16


@pytest.fixture(scope="module", autouse=True)
def registered():
    register()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    point_config = {"stem_channels": 8, "planes": [8] * 8, "blocks": [1] * 8}
    config = BiFusionConfig.from_preset("tiny", point_config=point_config, hidden_size=8)
    return BiFusionForInstanceSegmentation(config).eval()


@pytest.fixture(scope="module")
def processor(model):
    return BiFusionProcessor.from_preset("tiny", model.config, num_points=900)


@pytest.fixture(scope="module")
def segmenter(model, processor):
    # Untrained masks are small: keep what there is.
    return pipeline(TASK, model=model, processor=processor, threshold=0.0, min_points=0, device="cpu")


@pytest.fixture(scope="module")
def frame():
    return make_frame(96, 128, superpoints=SUPERPOINTS)


def as_dict(frame) -> dict:
    return {
        "image": frame.image,
        "depth": frame.depth,
        "intrinsics": frame.intrinsics,
        "pose": frame.camera_to_world,
        "superpoints": frame.superpoints,
        "frame_id": frame.frame_id,
    }


def assert_equal_results(first, second):
    assert set(first) == set(second)
    for name in ("segmentation", "point_masks", "scores", "labels", "points", "pixel_indices"):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert first["segments_info"] == second["segments_info"]


def test_a_frame_gives_what_processor_and_model_give(segmenter, model, processor, frame):
    result = segmenter(as_dict(frame))
    batch = processor.collate([processor.prepare_frame(frame)])
    with torch.no_grad():
        outputs = model(**{name: batch[name] for name in FORWARD_INPUTS})
    expected = processor.post_process_instance_segmentation(
        outputs, batch, threshold=0.0, min_points=0, semantic_names=model.config.semantic_id2label
    )[0]
    assert len(expected["scores"]) > 0
    for name in ("segmentation", "point_masks", "scores", "labels"):
        assert isinstance(result[name], np.ndarray)
        np.testing.assert_array_equal(result[name], expected[name].numpy())
    assert result["segments_info"] == expected["segments_info"]
    assert result["segments_info"][0]["label"] == "object"
    assert result["segmentation"].shape == (96, 128)
    positions = frame.unproject().reshape(-1, 3)[result["pixel_indices"]]
    np.testing.assert_allclose(result["points"], positions, atol=1e-5)
    segment = result["segments_info"][-1]
    inside = positions[result["point_masks"][segment["id"]]]
    np.testing.assert_allclose(segment["box_3d"], bounding_box(inside), atol=1e-5)


def test_on_a_gpu_only_what_is_found_comes_back(model, processor, frame, monkeypatch):
    settings = {"threshold": 0.0, "min_points": 0, "part_gap": 0.0}
    expected = pipeline(TASK, model=model, processor=processor, device="cpu")(frame, **settings)
    segmenter = pipeline(TASK, model=copy.deepcopy(model), processor=processor, device="cpu")
    # What transformers asks of a real device.
    monkeypatch.setattr(segmenter, "device", DEVICE)
    monkeypatch.setattr(segmenter, "device_placement", contextlib.nullcontext)
    monkeypatch.setattr(segmenter, "get_inference_context", lambda: torch.no_grad)
    batch = segmenter.collate([segmenter.preprocess(frame)])
    with LaunchCounter():
        move(segmenter.model)
        outputs = segmenter.forward(batch)
        assert outputs["batch"] is batch and batch["superpoint_maps"][0].device.type == "cpu"
        logits = outputs["outputs"].masks_queries_logits
        assert logits.device == DEVICE
        with LaunchCounter() as counter:
            (result,) = segmenter.postprocess(outputs, **settings)
    # And the classes of the superpoints, from which masks get their names.
    names = outputs["outputs"].semantic_queries_logits, outputs["outputs"].query_superpoints
    found = result["point_masks"].nbytes + sum(result[name].nbytes for name in ("scores", "labels", "queries"))
    found += sum(values.numel() * values.element_size() for values in names)
    assert counter.bytes_to_host == found < logits.numel() * logits.element_size()
    assert counter.waits.total() <= 10
    assert len(result["scores"]) > 0
    assert_equal_results(
        {**result, "scores": result["scores"].round(4), "segments_info": 0},
        {**expected, "scores": expected["scores"].round(4), "segments_info": 0},
    )


def test_kinds_of_input_are_alike(segmenter, frame, tmp_path):
    expected = segmenter(as_dict(frame))
    assert_equal_results(segmenter(frame), expected)
    Image.fromarray(frame.image).save(tmp_path / "color.png")
    Image.fromarray(np.rint(frame.depth * 10000).astype(np.uint16)).save(tmp_path / "depth.png")
    files = {
        **as_dict(frame),
        "image": str(tmp_path / "color.png"),
        "depth": tmp_path / "depth.png",
        "depth_scale": 10000,
    }
    from_files = segmenter(files)
    np.testing.assert_array_equal(from_files["pixel_indices"], expected["pixel_indices"])
    np.testing.assert_allclose(from_files["points"], expected["points"], atol=2e-4)


def test_lists_generators_and_batches_are_alike(segmenter):
    frames = [make_frame(96, 128, seed=seed, superpoints=SUPERPOINTS) for seed in range(3)]
    # Fewer points than the others, so that the batch is padded.
    frames[1].depth[:, 12:] = 0
    alone = [segmenter(frame) for frame in frames]
    listed = segmenter([as_dict(frame) for frame in frames])
    streamed = list(segmenter(frame for frame in frames))
    for one, two, three in zip(alone, listed, streamed, strict=True):
        assert_equal_results(one, two)
        assert_equal_results(one, three)
    batched = segmenter(frames, batch_size=3)
    for one, two in zip(alone, batched, strict=True):
        np.testing.assert_array_equal(one["pixel_indices"], two["pixel_indices"])
        assert len(one["scores"]) == len(two["scores"])
        np.testing.assert_allclose(one["scores"], two["scores"], atol=1e-4)


def test_columns_of_datasets(segmenter):
    frames = [make_frame(96, 128, seed=seed) for seed in range(2)]
    columns = ("image", "depth", "depth_scale", "intrinsics")
    features = datasets.Features({"frame": {name: frame_features()[name] for name in columns}})
    rows = [{"frame": {name: frame_to_row(frame)[name] for name in columns}} for frame in frames]
    data = datasets.Dataset.from_list(rows, features=features)
    expected = [segmenter(row["frame"]) for row in data]
    for source in (data["frame"], KeyDataset(data, "frame")):
        for one, two in zip(segmenter(source), expected, strict=True):
            assert_equal_results(one, two)


def test_rows_of_a_data_set_go_straight_in(segmenter):
    rows = list(load_frames("sample", "val").select(range(2)))
    decoded = {**rows[0], **{key: Image.open(io.BytesIO(rows[0][key]["bytes"])) for key in ("image", "depth")}}
    expected = [segmenter(replace(frame_from_row(row), instance=None, semantic=None)) for row in rows]
    for one, two in zip([*segmenter(rows), segmenter(decoded)], [*expected, expected[0]], strict=True):
        assert_equal_results(one, two)


def test_the_pose_by_either_name(segmenter, frame):
    values = as_dict(frame)
    values["camera_to_world"] = values.pop("pose")
    assert_equal_results(segmenter(values), segmenter(as_dict(frame)))
    with pytest.raises(ValueError, match="synthetic 0: camera_to_world and pose are the same; expected one"):
        segmenter({**values, "pose": values["camera_to_world"]})


def test_files_and_intrinsics_as_cameras_write_them(segmenter, frame, tmp_path):
    Image.fromarray(frame.image).save(tmp_path / "color.png")
    np.savez(tmp_path / "depth.npz", depth=frame.depth)
    fx, fy, cx, cy = (float(frame.intrinsics[index]) for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
    camera = {"fx": fx, "fy": fy, "ppx": cx, "ppy": cy, "width": 128, "height": 96}
    (tmp_path / "camera.json").write_text(json.dumps(camera))
    files = {"image": str(tmp_path / "color.png"), "depth": tmp_path / "depth.npz"}
    expected = segmenter(as_dict(frame))
    for intrinsics in (camera, tmp_path / "camera.json"):
        assert_equal_results(segmenter({**as_dict(frame), **files, "intrinsics": intrinsics}), expected)


@pytest.mark.parametrize("setting", [{"threshold": 50}, {"mask_threshold": -0.1}])
def test_a_threshold_that_is_no_probability_is_refused(segmenter, frame, setting):
    with pytest.raises(ValueError, match="expected a probability, 0 to 1"):
        segmenter(frame, **setting)


def test_the_task_has_a_model_of_its_own():
    segmenter = pipeline(TASK, device="cpu")
    expected = BiFusionForInstanceSegmentation.from_pretrained("sample").state_dict()
    assert all(value.equal(expected[name]) for name, value in segmenter.model.state_dict().items())
    assert segmenter.processor.num_points == 8000


@pytest.mark.parametrize("frame", ["color.png", 3, ["color.png"], np.zeros((96, 128, 3))])
def test_what_is_no_frame_is_refused(segmenter, frame):
    with pytest.raises(ValueError, match="expected a dict or an RGBDFrame"):
        segmenter(frame)


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_masks_that_are_not_made_change_no_result(threshold):
    """The sample checkpoint, whose queries are mostly improbable."""
    segmenter = pipeline(TASK, device="cpu")
    row = load_frames("sample", "val")[0]
    settings = {} if threshold is None else {"threshold": threshold}
    batch = segmenter.collate([segmenter.preprocess(frame_from_row(row))])
    outputs = segmenter.forward(batch, score_threshold=threshold or SCORE_THRESHOLD)
    made = torch.isfinite(outputs["outputs"].masks_queries_logits).all(-1)
    assert 0 < made.sum() < made.numel() / 2
    (found,) = segmenter.postprocess(outputs, **settings)
    (expected,) = segmenter.postprocess(segmenter.forward(batch), **settings)
    assert len(expected["scores"]) > 3
    assert_equal_results(segmenter(frame_from_row(row), **settings), found)
    np.testing.assert_array_equal(found["point_masks"], expected["point_masks"])
    np.testing.assert_array_equal(found["segmentation"], expected["segmentation"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)


def test_settings_of_a_call(segmenter, frame):
    assert len(segmenter(frame, max_instances=2)["scores"]) <= 2
    parts, whole = (segmenter(frame, threshold=0.0, part_gap=gap)["point_masks"] for gap in (0.05, 0.0))
    assert len(parts) != len(whole)
    nothing = segmenter(frame, threshold=1.0)
    assert nothing["segments_info"] == []
    assert (nothing["segmentation"] == -1).all()
    with pytest.raises(TypeError, match="unknown_setting"):
        segmenter(frame, unknown_setting=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intrinsics": None}, "synthetic 0: intrinsics"),
        ({"colour": 1}, r"synthetic 0: keys missing \[\], unknown \['colour'\]"),
        ({"depth": np.ones((96, 128), np.uint16)}, "synthetic 0: depth has dtype uint16 and depth_scale is None"),
    ],
)
def test_malformed_frames_are_refused(segmenter, frame, change, message):
    with pytest.raises(ValueError, match=message):
        segmenter({**as_dict(frame), **change})


def test_missing_keys_are_named(segmenter, frame):
    with pytest.raises(ValueError, match=r"frame: keys missing \['depth', 'intrinsics'\]"):
        segmenter({"image": frame.image})


def test_a_saved_model_and_processor_are_found_by_the_task(segmenter, model, processor, frame, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu", threshold=0.0, min_points=0)
    assert isinstance(loaded, RGBDInstanceSegmentationPipeline)
    assert_equal_results(loaded(frame), segmenter(frame))
    found = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(found, BiFusionProcessor)
    assert found.to_dict() == processor.to_dict()


def test_a_model_in_training_mode_is_put_into_evaluation_mode(model, processor, frame, segmenter):
    model.train()
    other = pipeline(TASK, model=model, processor=processor, device="cpu", threshold=0.0, min_points=0)
    assert not model.training
    assert_equal_results(other(frame), segmenter(frame))


@pytest.mark.parametrize(("slowdown", "dtype"), [(80.0, "bfloat16"), (1.2, "bfloat16"), (80.0, "float32")])
def test_bfloat16_on_a_cpu_without_its_instructions_is_told(model, processor, monkeypatch, slowdown, dtype):
    monkeypatch.setattr("bifusion_hf.layers.bfloat16.bfloat16_slowdown", lambda: slowdown)
    network = copy.deepcopy(model).to(getattr(torch, dtype))
    with warnings.catch_warnings(record=True) as told:
        pipeline(TASK, model=network, processor=processor, device="cpu")
    told = [str(warning.message) for warning in told if "bfloat16" in str(warning.message)]
    slow = 'takes 80 times as long as one of float32; dtype="float32" is faster'
    assert len(told) == (slowdown > 3 and dtype == "bfloat16") and all(slow in message for message in told)


def test_registering_twice_changes_nothing():
    before = PIPELINE_REGISTRY.supported_tasks[TASK]
    register()
    assert PIPELINE_REGISTRY.supported_tasks[TASK] is before


@pytest.mark.gpu
def test_cuda_finds_what_the_cpu_finds(segmenter, model, processor, frame):
    expected = segmenter(frame)
    model.cuda()
    try:
        found = pipeline(TASK, model=model, processor=processor, device="cuda", threshold=0.0, min_points=0)(frame)
    finally:
        model.cpu()
    assert len(found["scores"]) == len(expected["scores"])
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
    assert (found["segmentation"] == expected["segmentation"]).mean() > 0.95


def test_the_threshold_of_a_pipeline_is_that_of_its_calls():
    """Given to the pipeline, to a call, or to none: masks are made for what may pass, and for no call too few."""
    row = load_frames("sample", "val")[0]
    frame = frame_from_row(row)
    low = pipeline(TASK, device="cpu", threshold=0.1)
    default = pipeline(TASK, device="cpu")
    assert_equal_results(low(frame), default(frame, threshold=0.1))
    assert_equal_results(low(frame, threshold=SCORE_THRESHOLD), default(frame))
    assert len(low(frame)["scores"]) > len(default(frame)["scores"]) > 0
