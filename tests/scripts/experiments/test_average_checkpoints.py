import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from bifusion_hf import BiFusionForInstanceSegmentation, BiFusionProcessor
from scripts.experiments.average_checkpoints import main


@pytest.fixture(scope="module")
def checkpoints(small_config, tmp_path_factory):
    """Two checkpoints of one network with other weights; not to be changed."""
    path, folders = tmp_path_factory.mktemp("runs"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = BiFusionForInstanceSegmentation(small_config())
        for buffer in model.buffers():  # statistics that differ too
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        folders.append(path / f"run_{seed}")
        model.save_pretrained(folders[-1])
        BiFusionProcessor(num_points=900 + seed).save_pretrained(folders[-1])
    return folders


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def test_the_mean_has_its_weights_and_loads(checkpoints, tmp_path):
    first, last = checkpoints
    main([str(tmp_path / "mean"), str(first), str(last), "--weights", "3", "1"])
    a, b, mean = tensors_of(first), tensors_of(last), tensors_of(tmp_path / "mean")
    assert mean.keys() == b.keys()
    changed = 0
    for name, tensor in mean.items():
        expected = 0.75 * a[name] + 0.25 * b[name] if tensor.is_floating_point() else b[name]
        torch.testing.assert_close(tensor, expected)
        changed += not torch.equal(tensor, b[name])
    assert changed > len(mean) / 2
    BiFusionForInstanceSegmentation.from_pretrained(tmp_path / "mean")
    assert BiFusionProcessor.from_pretrained(tmp_path / "mean").num_points == 901


def test_equal_checkpoints_are_their_mean_to_the_bit(checkpoints, tmp_path):
    main([str(tmp_path / "mean"), *[str(checkpoints[0])] * 3])
    before, after = tensors_of(checkpoints[0]), tensors_of(tmp_path / "mean")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_in_progress_stands_for_its_average(checkpoints, tmp_path):
    first, last = tmp_path / "run", checkpoints[1]
    shutil.copytree(checkpoints[0], first)
    average = {"n_averaged": torch.tensor(7), **{f"module.{name}": t for name, t in tensors_of(last).items()}}
    save_file(average, first / "ema.safetensors")
    main([str(tmp_path / "average"), str(first)])
    expected, found = tensors_of(last), tensors_of(tmp_path / "average")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("weights", [["1"], ["1", "0"], ["1", "-2"]])
def test_weights_that_do_not_fit(checkpoints, tmp_path, weights):
    with pytest.raises(SystemExit, match="--weights"):
        main([str(tmp_path / "mean"), *map(str, checkpoints), "--weights", *weights])


def test_another_network_is_refused(checkpoints, small_config, tmp_path):
    BiFusionForInstanceSegmentation(small_config("lite_gate")).save_pretrained(tmp_path / "other")
    BiFusionProcessor().save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit, match="tensors unlike"):
        main([str(tmp_path / "mean"), str(checkpoints[0]), str(tmp_path / "other")])
    assert not (tmp_path / "mean").exists()
