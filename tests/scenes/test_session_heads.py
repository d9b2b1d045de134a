"""Sessions with networks that have heads for merging and a memory of frames."""

import numpy as np
import pytest
import torch
from frame_factory import make_frame
from test_session import assert_same_state, frames, state_of

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from bifusion_hf.scenes import SceneSession


def test_a_network_with_the_heads_merges_by_them_and_remembers(online_network, tmp_path):
    model, processor = online_network
    session = SceneSession(model, processor, threshold=0.0)
    assert session.merging.name == "learned" and session.max_instances == 20
    first, second, third = frames(3)
    result = session.update(first)
    assert len(result["ids"]) <= 20 and len(session.frame_memory.levels) == 4
    # The network sees the world's coordinates: the voxels of its memory are those of the points.
    voxels = np.unique(np.floor(result["points"] / model.config.voxel_size / 2).astype(int) * 2, axis=0)
    coordinates = session.frame_memory.levels[0].grid.coordinates[:, 1:].numpy()
    assert {tuple(row) for row in coordinates.tolist()} == {tuple(row) for row in voxels.tolist()}
    before = {name: value.clone() for name, value in session.frame_memory.state().items()}
    with pytest.raises(ValueError, match="camera_to_world is None"):
        session.update(make_frame(60, 80, with_pose=False))
    for name, value in session.frame_memory.state().items():
        assert torch.equal(value, before[name])
    session.update(second)
    assert (session.bank["views"] == 2).any(), "untrained embeddings are alike, so something is merged"
    np.testing.assert_allclose(np.linalg.norm(session.bank["features"][session.bank["views"] == 1], axis=1), 1)
    session.save(tmp_path / "scene.safetensors")
    resumed = SceneSession.load(tmp_path / "scene.safetensors", model, processor)
    last = [each.update(third) for each in (session, resumed)]
    np.testing.assert_array_equal(last[0]["segmentation"], last[1]["segmentation"])
    np.testing.assert_array_equal(last[0]["scores"], last[1]["scores"])
    assert_same_state(state_of(session), state_of(resumed))
    item = session.objects(min_points=0)[0]
    assert (item.box_3d == session.bank["boxes"][session.bank.rows(np.array([item.id]))[0]]).all()


def test_boxes_of_the_head_are_in_the_world(small_config):
    torch.manual_seed(0)
    config = small_config("none", use_box_head=True, use_merge_head="layer")
    model, processor = BiFusionForInstanceSegmentation(config).eval(), BiFusionProcessor.from_config(config)
    session = SceneSession(model, processor, threshold=0.0)
    assert session.merging.name == "learned" and session.frame_memory is None
    points = session.update(next(frames()))["points"]
    boxes = session.bank["boxes"]
    centres = (boxes[:, :3] + boxes[:, 3:]) / 2
    # The network's own coordinates are those of the points without their mean, which is metres away.
    assert len(boxes) and (np.linalg.norm(points.mean(axis=0)) > 1)
    assert (centres > points.min(axis=0) - 0.5).all() and (centres < points.max(axis=0) + 0.5).all()
    assert session.objects(min_points=0)[-1].score == session.bank["scores"].min()
    processor.reference_depth = 20.0
    with pytest.raises(ValueError, match="frame adapters and learned merging compare frames in metres"):
        SceneSession(model, processor)


def test_the_memory_can_be_reset_at_every_frame(online_network):
    first, second, _ = frames(3)
    forgetful = SceneSession(*online_network, threshold=0.0, memory="frame")
    forgetful.update(first)
    assert forgetful.frame_memory is None
    alone, scene = (SceneSession(*online_network, threshold=0.0) for _ in range(2))
    scene.update(first)
    results = [session.update(second) for session in (forgetful, alone, scene)]
    np.testing.assert_array_equal(results[0]["scores"], results[1]["scores"])
    assert (
        len(results[0]["scores"]) != len(results[2]["scores"]) or (results[0]["scores"] != results[2]["scores"]).any()
    )
    with pytest.raises(ValueError, match="memory is 'none'"):
        SceneSession(*online_network, memory="none")
