import zipfile

import numpy as np
import pytest
from light_package import light_package
from PIL import Image
from processes import another_in

from bifusion_hf.cli.render_rooms import main
from bifusion_hf.data.frames import frame_from_row, load_frames
from bifusion_hf.io.locks import FolderInUseError
from bifusion_hf.rooms.dataset import GENERATOR_VERSIONS, build_dataset, frames_hash, stored_rows
from bifusion_hf.rooms.generate import RoomGenerator, RoomSettings
from bifusion_hf.rooms.sensor import SENSORS
from bifusion_hf.rooms.texture_pack import TexturePack


def settings(tmp_path, **changes):
    values = {
        "furniture": (),
        "libraries": (),
        "cache": str(tmp_path / "cache"),
        "width": 80,
        "height": 60,
        "views": 2,
    }
    return RoomSettings(**{**values, **changes})


def test_frames_depend_on_seed_split_and_number_alone(tmp_path):
    generator = RoomGenerator(settings(tmp_path, seed=3))
    other = RoomGenerator(settings(tmp_path, seed=3))
    other.room_frames("val", 0)
    first, second = generator.room_frames("train", 1), other.room_frames("train", 1)
    for a, b in zip(first, second, strict=True):
        assert a.frame_id == b.frame_id
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.depth, b.depth)
        np.testing.assert_array_equal(a.instance, b.instance)
    assert not np.array_equal(first[0].image, generator.room_frames("train", 2)[0].image)
    reseeded = RoomGenerator(settings(tmp_path, seed=4)).room_frames("train", 1)
    assert not np.array_equal(first[0].image, reseeded[0].image)
    assert not np.array_equal(first[0].camera_to_world, first[1].camera_to_world)


def test_an_interrupted_data_set_goes_on_and_any_number_of_workers_gives_the_same(tmp_path, monkeypatch):
    plan = {"train": 3, "val": 2}
    monkeypatch.setattr("bifusion_hf.rooms.dataset._MAX_FRAMES_PER_SHARD", 2)
    # The workers, new processes, find their modules there.
    light_package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    whole = build_dataset(tmp_path / "a", settings(tmp_path), plan, workers=2, jpeg_quality=90, progress=False)
    shards = sorted((tmp_path / "a" / "data").iterdir())
    assert [path.name for path in shards] == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "val-00000-of-00001.parquet",
    ]
    kept = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    again = build_dataset(tmp_path / "a", settings(tmp_path), plan, workers=1, jpeg_quality=90, progress=False)
    assert again == whole and shards[0].stat().st_mtime_ns == kept
    frames = load_frames(tmp_path / "a", "train")
    assert len(frames) == 3 and not list((tmp_path / "a").rglob("*.part"))
    frame = frame_from_row(frames[2])
    assert frame.image.shape == (60, 80, 3) and frame.instance.max() > 0 and frame.camera_to_world is not None
    assert whole["sha256"]["train"] == frames_hash(tmp_path / "a", "train")
    card = (tmp_path / "a" / "README.md").read_text()
    assert whole["sha256"]["val"] in card and "$" not in card and "license: cc0-1.0" in card
    with pytest.raises(ValueError, match="seed is 0, asked for 1"):
        build_dataset(tmp_path / "a", settings(tmp_path, seed=1), plan, jpeg_quality=90, progress=False)


def test_a_data_set_in_progress_is_not_joined(tmp_path):
    with another_in(tmp_path / "a"), pytest.raises(FolderInUseError, match="a is in use by process"):
        build_dataset(tmp_path / "a", settings(tmp_path), {"train": 1}, progress=False)
    assert not list((tmp_path / "a" / "data").iterdir())


def test_the_card_tells_the_world_and_its_sensors(tmp_path):
    for world, title in (("rooms", "# Rooms: "), ("tabletop", "# Tabletop: ")):
        out = tmp_path / world
        sensor = "mixed" if world == "tabletop" else "kinect1"
        chosen = settings(tmp_path, world=world, sensor=sensor, views=1)
        summary = build_dataset(out, chosen, {"train": 1}, progress=False)
        card = (out / "README.md").read_text()
        assert title in card and "$" not in card
        assert ("fx = fy = 577.87" in card) == (world == "rooms") == ("Close-ups" not in card)
        assert [name for name in SENSORS if f"\n- {name}: " in card] == list(
            SENSORS if sensor == "mixed" else [sensor]
        )
        assert summary["generator"] == GENERATOR_VERSIONS[world]


def test_models_of_a_library_are_used_and_credited(tmp_path, library_file):
    # The stub library has one usable training model or more; a room of the other split never shows it.
    generator = RoomGenerator(settings(tmp_path, furniture=(str(library_file),), libraries=("BlendSwap-CC-0",)))
    names = {split: {m.name for m in inventory.all_models()} for split, inventory in generator.inventories.items()}
    assert names["train"] | names["val"] == {"Chair", "Box"} and not names["train"] & names["val"]


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="size is 80x80"):
        settings(tmp_path, height=80)
    with pytest.raises(ValueError, match="views is 0"):
        settings(tmp_path, views=0)
    with pytest.raises(ValueError, match="'test'.*unknown"):
        build_dataset(tmp_path / "b", settings(tmp_path), {"test": 1})


def test_command_line_explains_itself_and_refuses_nonsense(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "sweethome3d-furniture" in out
    assert all(f"\n  {name:8} " in out for name in SENSORS) and "the projector's shadow" in out
    for arguments in (["--train", "0"], ["--val", "-1"]):
        with pytest.raises(SystemExit) as stop:
            main(["--out", str(tmp_path / "c"), *arguments])
        assert stop.value.code == 2
    with pytest.raises(SystemExit, match="error: .*no.deb is no .deb, folder or .sh3f file"):
        main(["--out", str(tmp_path / "c"), "--train", "1", "--furniture", str(tmp_path / "no.deb")])


def test_pictures_of_a_wheel_cover_the_room(tmp_path):
    path = tmp_path / "pack.whl"
    names = [f"brick_wall_{index}" for index in range(20)] + ["lava_1"]
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(names):
            picture = tmp_path / "picture.png"
            Image.new("RGB", (512, 300), (index, 0, 0)).save(picture)
            archive.write(picture, f"miniworld/textures/{name}.png")
    pack = TexturePack(path)
    rng = np.random.default_rng(0)
    seen = {s: {int(pack.pick(rng, s, "wall").image[0, 0, 0]) for _ in range(80)} for s in ("train", "val")}
    assert not seen["train"] & seen["val"] and seen["train"] | seen["val"] <= set(range(20))
    assert max(pack.pick(rng, "train", "wall").image.shape) == 256
    assert pack.pick(rng, "train", "ceiling") is None
    with pytest.raises(ValueError, match="no wheel"):
        TexturePack(__file__)


def test_the_shipped_frames_are_what_their_card_says():
    from bifusion_hf.assets import SAMPLE_FRAMES

    card = (SAMPLE_FRAMES / "README.md").read_text()
    assert sum(path.stat().st_size for path in SAMPLE_FRAMES.rglob("*") if path.is_file()) < 8e6
    for split, count in (("train", 64), ("val", 32)):
        frames = [frame_from_row(row) for row in stored_rows(SAMPLE_FRAMES, split)]
        assert len(frames) == len(load_frames("sample", split)) == count
        assert frames_hash(SAMPLE_FRAMES, split) in card
        assert all(frame.image.shape == (240, 320, 3) and frame.depth.shape == (240, 320) for frame in frames)
        large = [np.count_nonzero(np.bincount(frame.instance[frame.instance >= 0]) > 384) for frame in frames]
        assert 6 < np.mean(large) < 20 and min(large) >= 2
        assert all(0.0 < np.mean(frame.depth == 0) < 0.35 for frame in frames)
