import numpy as np
import pytest
import torch
from frame_factory import make_frame
from recording_files import make_frames, write_folders
from transformers import pipeline

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.data.frames import frame_to_row
from bifusion_hf.scenes import SceneSession
from bifusion_hf.scenes.pipeline import TASK, RGBDSceneSegmentationPipeline


@pytest.fixture(scope="module")
def scanner(small_config, tmp_path_factory):
    torch.manual_seed(0)
    model = BiFusionForInstanceSegmentation(small_config())
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    BiFusionProcessor.from_config(model.config, num_points=400).save_pretrained(path)
    result = pipeline(TASK, model=str(path), threshold=0.0, voxel_size=0.1, device="cpu")
    assert isinstance(result, RGBDSceneSegmentationPipeline) and not result.model.training
    return result


def as_dict(frame):
    return {
        "image": frame.image,
        "depth": frame.depth,
        "intrinsics": frame.intrinsics,
        "pose": frame.camera_to_world,
        "frame_id": frame.frame_id,
    }


def test_frames_of_every_kind_give_the_same_scene(scanner, tmp_path):
    frames = make_frames()
    session = SceneSession(scanner.model, scanner.processor, threshold=0.0, voxel_size=0.1)
    expected = [session.update(frame) for frame in frames]
    write_folders(tmp_path / "room", frames)
    sources = {
        "frames": frames,
        "generator": (frame for frame in frames),
        "dicts": [as_dict(frame) for frame in frames],
        "rows": [frame_to_row(frame, depth_scale=1000) for frame in frames],
        "path": tmp_path / "room",
    }
    for name, source in sources.items():
        results = list(scanner(source))
        assert len(results) == 3
        for result, other in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result["segmentation"], other["segmentation"], err_msg=name)
        assert [item.id for item in scanner.session.objects()] == [item.id for item in session.objects()]


def test_results_come_one_by_one_and_a_session_can_go_on(scanner):
    asked = []

    def frames():
        for frame in make_frames():
            asked.append(frame.frame_id)
            yield frame

    results = scanner(frames(), voxel_size=0.2)
    assert asked == [] and scanner.session.voxel_size == 0.2 and scanner.session.threshold == 0.0
    next(results)
    assert len(asked) == 1 and scanner.session.num_frames == 1
    session = scanner.session
    list(scanner(make_frames()[1:], session=session))
    assert scanner.session is session and session.num_frames == 3
    with pytest.raises(ValueError, match="session and .* exclude each other"):
        scanner([], session=session, threshold=0.5)


def test_what_is_no_sequence_of_posed_frames_is_refused(scanner):
    frame = make_frame(24, 32)
    for inputs in (frame, as_dict(frame), 3):
        with pytest.raises(ValueError, match="expected an iterable of posed frames"):
            scanner(inputs)
    with pytest.raises(ValueError, match="synthetic 0: camera_to_world is None"):
        list(scanner([make_frame(24, 32, with_pose=False)]))
    with pytest.raises(ValueError, match="expected a dict or an RGBDFrame"):
        list(scanner(["color.png"]))
    with pytest.raises(TypeError, match=r"unknown settings \['colour', 'size'\]; expected some of \['merging', "):
        scanner([], size=2, colour=1)


def test_the_network_does_not_train(scanner):
    training = RGBDSceneSegmentationPipeline(model=scanner.model.train(), processor=scanner.processor, device="cpu")
    assert training.model is scanner.model and not scanner.model.training
