import ast
from pathlib import Path

import numpy as np
import pytest
import yaml

from bifusion_hf import assets
from bifusion_hf.cli import demo_app
from bifusion_hf.demo.space import GRADIO_VERSION


REPOSITORY = Path(__file__).parents[2]


def write(folder, *options):
    demo_app.main(["--space", str(folder), *options])
    front_matter = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    return yaml.safe_load(front_matter)


def app_call(folder) -> str:
    """The argument of the app's only call; its imports exist."""
    tree = ast.parse((folder / "app.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            module = __import__(node.module, fromlist=[name.name for name in node.names])
            assert all(hasattr(module, name.name) for name in node.names)
    (call,) = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    assert call.func.id == "launch"
    return ast.unparse(call.args[0])


def test_with_the_sample_checkpoint(tmp_path, capsys):
    card = write(tmp_path / "space")
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and "models" not in card
    assert len(card["short_description"]) <= 60
    assert app_call(tmp_path / "space") == "str(SAMPLE_CHECKPOINT)"
    requirements = (tmp_path / "space" / "requirements.txt").read_text().splitlines()
    assert requirements[1].startswith("bifusion_hf[demo] @ git+https://")
    assert "app.py" in capsys.readouterr().out


def test_with_an_id_on_the_hub(tmp_path):
    card = write(tmp_path, "--checkpoint", "someone/a-model")
    assert card["models"] == ["someone/a-model"] and app_call(tmp_path) == "'someone/a-model'"
    card = write(tmp_path, "--checkpoint", "someone/a-model@v1.0")
    assert card["models"] == ["someone/a-model"] and app_call(tmp_path) == "'someone/a-model@v1.0'"


def test_with_a_folder_the_checkpoint_travels_along(tmp_path):
    source, space = tmp_path / "checkpoint", tmp_path / "space"
    source.mkdir()
    for name in ("config.json", "processor_config.json", "model.safetensors", "optimizer.bin"):
        (source / name).write_text(name)
    for _ in range(2):
        write(space, "--checkpoint", str(source))
    assert app_call(space) == "'checkpoint'"
    copied = sorted(path.name for path in (space / "checkpoint").iterdir())
    assert copied == ["config.json", "model.safetensors", "processor_config.json"]
    assert (space / "checkpoint" / "model.safetensors").read_text() == "model.safetensors"
    assert "*.safetensors filter=lfs" in (space / ".gitattributes").read_text()


def test_refusals_write_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty: has \[\]; expected config.json"):
        write(tmp_path / "space", "--checkpoint", str(tmp_path / "empty"))
    with pytest.raises(SystemExit, match="expected a folder, or an id on the Hub"):
        write(tmp_path / "space", "--checkpoint", "no such thing")
    assert not (tmp_path / "space").exists()


def test_the_version_is_the_one_that_is_tested():
    assert f"gradio=={GRADIO_VERSION}\n" in (REPOSITORY / "constraints.txt").read_text()


def test_samples_are_spread_over_the_data():
    names = [frame.frame_id for frame in demo_app.read_samples("sample", "val")]
    assert len(names) == len(set(names)) == demo_app.SAMPLES
    assert [frame.frame_id for frame in demo_app.read_samples("sample", "val", [8])] == names[1:2]
    # Half of them as sensors see close-ups and rooms, of which nobody knows the pose.
    frames = demo_app.read_samples("sample", "val")
    assert [frame.camera_to_world is None for frame in frames] == [False] * 4 + [True] * 4
    holes = [np.mean(frame.depth == 0) for frame in frames[4:]]
    assert sum(share > 0.01 for share in holes) >= 3
    with pytest.raises(ValueError, match=r"--rows 99: sample has 32 rows in 'val'"):
        demo_app.read_samples("sample", "val", [99])
    assert assets.SAMPLE_FRAMES.is_dir()
