import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from ply_files import read_ply

from bifusion_hf.cli.predict import main
from bifusion_hf.configuration_bifusion import BiFusionConfig
from bifusion_hf.data import gravity
from bifusion_hf.data.frames import RGBDFrame, frame_features, frame_to_row
from bifusion_hf.modeling_bifusion import BiFusionForInstanceSegmentation
from bifusion_hf.processing_bifusion import BiFusionProcessor
from bifusion_hf.visualization import instance_colors


HEIGHT, WIDTH = 60, 80


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = BiFusionConfig.from_preset("tiny")
    config.vision_config.num_hidden_layers = 1
    model = BiFusionForInstanceSegmentation(config)
    model.save_pretrained(folder)
    processor = BiFusionProcessor.from_config(config, num_points=1000, num_superpoints=40, image_size=(48, 64))
    processor.save_pretrained(folder)
    return str(folder)


def make_frame(frame_id="scene 1/frame", **labels) -> RGBDFrame:
    rng = np.random.default_rng(0)
    depth = np.full((HEIGHT, WIDTH), 2.5)
    depth[20:50, 20:50] = 1.5
    depth[:5] = 0
    depth += (depth > 0) * rng.uniform(0, 0.01, depth.shape)
    image = rng.integers(90, 110, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    image[20:50, 20:50, 0] += 100
    intrinsics = np.array([[70, 0, 39.5], [0, 70, 29.5], [0, 0, 1.0]])
    return RGBDFrame(image, depth, intrinsics, frame_id=frame_id, **labels)


@pytest.fixture
def files(tmp_path):
    frame = make_frame()
    Image.fromarray(frame.image).save(tmp_path / "room.png")
    Image.fromarray(np.rint(frame.depth * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    np.savetxt(tmp_path / "k.txt", frame.intrinsics)
    return {
        "--image": str(tmp_path / "room.png"),
        "--depth": str(tmp_path / "depth.png"),
        "--depth_scale": "1000",
        "--intrinsics": str(tmp_path / "k.txt"),
        "--output": str(tmp_path / "out"),
    }


def flat(options: dict) -> list[str]:
    return [
        part for name, value in options.items() for part in (name, *([value] if isinstance(value, str) else value))
    ]


def test_frame_from_files(checkpoint, files, tmp_path, capsys):
    main([*flat(files), "--checkpoint", checkpoint, "--threshold", "0"])
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["room.json", "room.ply", "room_overlay.png"]
    content = json.loads((out / "room.json").read_text())
    assert content["frame_id"] == "room" and (content["height"], content["width"]) == (HEIGHT, WIDTH)
    assert content["checkpoint"] == checkpoint and content["coordinates"].startswith("camera axes")
    segments = content["segments"]
    assert segments and f"room: {len(segments)} instances" in capsys.readouterr().out
    scores = [segment["score"] for segment in segments]
    assert scores == sorted(scores, reverse=True)

    frame = make_frame()
    cloud = read_ply(out / "room.ply")
    points = np.stack([cloud[axis] for axis in "xyz"], axis=1)
    np.testing.assert_allclose(points, frame.unproject()[frame.depth > 0], atol=2e-3)
    colors = np.stack([cloud[name] for name in ("red", "green", "blue")], axis=1)
    none = cloud["instance"] < 0
    np.testing.assert_array_equal(colors[none], frame.image[frame.depth > 0][none])
    np.testing.assert_array_equal(colors[~none], instance_colors(100)[cloud["instance"][~none]])
    for segment in segments:
        assert segment["num_pixels"] == np.count_nonzero(cloud["instance"] == segment["id"])
        assert segment["color"] == instance_colors(100)[segment["id"]].tolist()
    with Image.open(out / "room_overlay.png") as picture:
        assert picture.width % WIDTH == 0 and picture.width > 900


def test_two_inputs_with_one_name_keep_their_results(checkpoint, files, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("--image", "--depth"):
        shutil.copy(files[name], other)
    there = {**files, "--image": str(other / "room.png"), "--depth": str(other / "depth.png")}
    first = flat({**files, "--checkpoint": checkpoint, "--threshold": "0"})
    main(first)
    before = (tmp_path / "out" / "room.json").read_bytes()
    main(flat({**there, "--checkpoint": checkpoint, "--threshold": "0"}))
    main(first)
    kinds = [".json", ".ply", "_overlay.png"]
    names = [f"room{number}{kind}" for number in ("", "-2") for kind in kinds]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert (tmp_path / "out" / "room.json").read_bytes() == before
    found = json.loads((tmp_path / "out" / "room-2.json").read_text())
    assert found["input"] == f"{other / 'room.png'}, {other / 'depth.png'}"


def test_same_prediction_from_four_numbers(checkpoint, files, tmp_path):
    results = []
    for intrinsics in (files["--intrinsics"], ["70", "70", "39.5", "29.5"]):
        main([*flat({**files, "--intrinsics": intrinsics}), "--checkpoint", checkpoint, "--threshold", "0"])
        results.append((tmp_path / "out" / "room.json").read_text())
    assert results[0] == results[1]


def test_pose_superpoints_and_threshold(checkpoint, files, tmp_path):
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    pose[:3, 3] = 10, 20, 30
    np.savetxt(tmp_path / "pose.txt", pose)
    np.save(tmp_path / "s.npy", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 400)
    options = {**files, "--pose": str(tmp_path / "pose.txt"), "--superpoints": str(tmp_path / "s.npy")}
    main([*flat(options), "--checkpoint", checkpoint, "--threshold", "0"])
    content = json.loads((tmp_path / "out" / "room.json").read_text())
    assert content["coordinates"] == "world" and content["up"] == "pose"
    for segment in content["segments"]:
        low, high = np.split(np.array(segment["box_3d"]), 2)
        assert (low <= high).all() and (low > [7, 20, 27]).all() and (high < [13, 24, 33]).all()
    main([*flat(options), "--checkpoint", checkpoint, "--threshold", "0.999"])
    assert json.loads((tmp_path / "out" / "room.json").read_text())["segments"] == []
    assert (read_ply(tmp_path / "out" / "room.ply")["instance"] == -1).all()


def test_up_is_estimated_unless_the_camera_is_asked_for(checkpoint, files, tmp_path, monkeypatch):
    tilted = np.array([0.0, -0.8, -0.6])
    monkeypatch.setattr(gravity, "estimate_up", lambda depth, intrinsics: gravity.UpEstimate(tilted, 1.0))
    found = []
    for words in ([], ["--camera_up"]):
        main([*flat(files), "--checkpoint", checkpoint, "--threshold", "0", *words])
        found.append(json.loads((tmp_path / "out" / "room.json").read_text()))
    assert [content["up"] for content in found] == ["estimated", "camera"]
    # What comes out is in the axes of the input, either way.
    assert {content["coordinates"] for content in found} == {"camera axes relabelled x right, y forward, z up"}
    assert found[0]["segments"] != found[1]["segments"]


def test_rows_of_a_data_set(checkpoint, tmp_path):
    import datasets

    instance = np.full((HEIGHT, WIDTH), -1)
    instance[20:50, 20:50], instance[55:] = 4, 2
    semantic = np.where(instance == 4, 2, 0)
    rows = [frame_to_row(make_frame(f"scene/{i}", instance=instance, semantic=semantic)) for i in range(3)]
    (tmp_path / "set" / "data").mkdir(parents=True)
    data = datasets.Dataset.from_list(rows, features=frame_features())
    data.to_parquet(str(tmp_path / "set" / "data" / "val-00000-of-00001.parquet"))
    options = {"--data": str(tmp_path / "set"), "--rows": ["0", "2"], "--output": str(tmp_path / "out")}
    main([*flat(options), "--checkpoint", checkpoint, "--threshold", "0"])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    kinds = [".json", ".ply", "_comparison.png", "_overlay.png"]
    assert names == [f"scene_{row}{kind}" for row in (0, 2) for kind in kinds]
    with pytest.raises(SystemExit, match=r"--rows 7: .* has 3 rows in 'val'"):
        main([*flat({**options, "--rows": "7"}), "--checkpoint", checkpoint])
    with pytest.raises(SystemExit, match=r"no data/test-\*\.parquet"):
        main([*flat(options), "--split", "test", "--checkpoint", checkpoint])


def test_truth_is_named_and_without_stuff():
    from bifusion_hf.cli.predict import true_segments

    instance = np.full((HEIGHT, WIDTH), -1)
    instance[20:50, 20:50], instance[55:] = 4, 2
    semantic = np.where(instance == 4, 2, 0)
    segmentation, segments = true_segments(make_frame(instance=instance, semantic=semantic), (0, 1))
    assert segments == [{"id": 4, "label": "chair"}]
    np.testing.assert_array_equal(segmentation, np.where(instance == 4, 4, -1))
    segmentation, segments = true_segments(make_frame(instance=instance), (0, 1))
    assert segments == [{"id": 2}, {"id": 4}]


def test_real_frames(checkpoint, real_frames, tmp_path):
    for name in ("desk_1", "desk_2"):
        options = {
            "--image": str(real_frames / f"{name}_color.png"),
            "--depth": str(real_frames / f"{name}_depth.png"),
            "--depth_scale": "5000",
            "--intrinsics": ["520.9", "521.0", "325.1", "249.7"],
            "--output": str(tmp_path),
        }
        main([*flat(options), "--checkpoint", checkpoint, "--threshold", "0"])
        cloud = read_ply(tmp_path / f"{name}_color.ply")
        assert len(cloud["x"]) > 150000 and cloud["instance"].max() >= 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--image": None}, "--image missing"),
        ({"--intrinsics": None, "--depth": None}, "--depth, --intrinsics missing"),
        ({"--data": "sample"}, "--data and --image, --depth, --intrinsics, --depth_scale exclude each other"),
        ({"--intrinsics": ["500", "500", "320"]}, "--intrinsics has 3 numbers; expected fx fy cx cy"),
        ({"--intrinsics": ["a.txt", "b.txt"]}, "expected fx fy cx cy, or one file"),
        ({"--output": None}, "--output"),
        ({"--superpoints": "a", "--mask_generator": "b"}, "--superpoints and --mask_generator exclude each other"),
    ],
)
def test_usage_errors(change, message, files, capsys):
    options = {name: value for name, value in {**files, **change}.items() if value is not None}
    with pytest.raises(SystemExit) as error:
        main(flat(options))
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_errors_of_the_data_name_the_file(checkpoint, files, tmp_path):
    def fails(change, message):
        options = {name: value for name, value in {**files, **change}.items() if value is not None}
        with pytest.raises(SystemExit, match=message):
            main([*flat(options), "--checkpoint", checkpoint])

    fails(
        {"--depth_scale": None},
        r"error: .*depth\.png: depth has dtype uint16 and depth_scale is None",
    )
    fails({"--image": str(tmp_path / "none.png")}, r"error: .*none\.png.*No such file")
    fails({"--intrinsics": str(tmp_path / "none.txt")}, r"No such file.*none\.txt")
    fails({"--depth_scale": "-1"}, "depth_scale is -1")
    (tmp_path / "text.png").write_text("not a picture")
    fails({"--image": str(tmp_path / "text.png")}, r"text\.png: is no readable picture: of no known format")
    with pytest.raises(SystemExit, match="no-such-checkpoint"):
        main([*flat(files), "--checkpoint", str(tmp_path / "no-such-checkpoint")])


def test_damaged_weights_are_told_in_a_line(checkpoint, files, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "damaged")
    weights, content = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()

    def fails(message):
        with pytest.raises(SystemExit, match=rf"bifusion-predict: error: {message}"):
            main([*flat(files), "--checkpoint", str(folder)])

    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8912345\n")
    fails(".*model.safetensors: is a Git LFS pointer")
    weights.write_bytes(content[:-100])
    fails(f".*model.safetensors: is cut short: it has {len(content) - 100} bytes and needs {len(content)}")
    weights.write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_size": config["decoder_size"] * 2}))
    fails(".*damaged: its weights do not have the shapes of its config.json")


def test_help(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for word in ("--image", "--depth_scale", "--rows", "5000 for TUM", "examples:"):
        assert word in text
