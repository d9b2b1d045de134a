"""Damaged files end in an error or a skipped frame, with the name of a file, or in a frame; in nothing else."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scannet_files import LABEL_MAP, pose, write_exported_scan, write_label_images, write_sens_scan

from bifusion_hf.data.scannet.annotations import axis_alignment, read_label_ids
from bifusion_hf.data.scannet.mesh import read_mesh
from bifusion_hf.data.scannet.preparation import read_split_list
from bifusion_hf.data.scannet.sens import SensFile
from bifusion_hf.data.scannet.shards import SkippedFrame
from bifusion_hf.data.scannet.source import ScanNetSource
from bifusion_hf.io.files import DataFileError


LABEL_IDS = {"wall": 1, "floor": 3, "stack of chairs": 2}
SCAN, EXPORTED = "scene0000_00", "scene0000_01"


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut short, bits flipped, bytes replaced, parts repeated or removed."""
    content = bytearray(data)
    # Headers are short, so half of the damage is done there.
    place = int(rng.integers(min(600, len(content)) if rng.random() < 0.5 else len(content)))
    kind = rng.integers(5)
    if kind == 0:
        del content[place:]
    elif kind == 1:
        for _ in range(rng.integers(1, 6)):
            index = min(place + int(rng.integers(16)), len(content) - 1)
            content[index] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        content[place : place + 4] = rng.bytes(4)
    elif kind == 3:
        content[place:place] = content[place : place + int(rng.integers(1, 200))]
    else:
        del content[place : place + int(rng.integers(1, 200))]
    return bytes(content)


def read_sens(path: Path):
    with SensFile(path) as sens:
        for index in range(len(sens)):
            sens.read_color(index)
            sens.read_depth(index)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    write_sens_scan(root / SCAN, [pose(), pose(0.3)], color_type=1)
    poses = {0: pose(), 200: pose(0.2)}
    write_exported_scan(root / EXPORTED, poses)
    write_label_images(root / EXPORTED, poses, zipped=True)
    (root / "labels.tsv").write_text(LABEL_MAP)
    (root / "list.txt").write_text("scene0000_00\nscene0000_01_0\nscene0000_01_200\n")
    return root


def targets(root: Path):
    """(file, what reads it)"""
    scan, exported = root / SCAN, root / EXPORTED

    def whole_scan(name, **options):
        def read(_path):
            for item in ScanNetSource(root, LABEL_IDS, frame_interval=1, **options).rows(name):
                if isinstance(item, SkippedFrame):
                    raise DataFileError(root, item.detail)

        return read

    yield scan / f"{SCAN}.sens", read_sens
    yield scan / f"{SCAN}.sens", whole_scan(SCAN, labels="none")
    yield scan / f"{SCAN}_vh_clean_2.ply", read_mesh
    yield scan / f"{SCAN}_vh_clean_2.ply", whole_scan(SCAN)
    yield scan / f"{SCAN}_vh_clean_2.0.010000.segs.json", whole_scan(SCAN)
    yield scan / f"{SCAN}.aggregation.json", whole_scan(SCAN)
    yield scan / f"{SCAN}.txt", axis_alignment
    yield exported / f"{EXPORTED}_2d-label-filt.zip", whole_scan(EXPORTED)
    yield exported / f"{EXPORTED}_2d-instance-filt.zip", whole_scan(EXPORTED)
    yield exported / "color" / "0.jpg", whole_scan(EXPORTED)
    yield exported / "depth" / "0.png", whole_scan(EXPORTED)
    yield exported / "pose" / "0.txt", whole_scan(EXPORTED)
    yield exported / "intrinsic" / "intrinsic_depth.txt", whole_scan(EXPORTED)
    yield exported / "intrinsic" / "intrinsic_color.txt", whole_scan(EXPORTED)
    yield root / "labels.tsv", read_label_ids
    yield root / "list.txt", read_split_list


def test_damaged_files(original, tmp_path, count=256):
    root = tmp_path / "scans"
    shutil.copytree(original, root)
    pairs = list(targets(root))
    for path, read in pairs:
        read(path)
    rng = np.random.default_rng(count)
    failed: Counter[str] = Counter()
    for trial in range(count):
        path, read = pairs[trial % len(pairs)]
        content = path.read_bytes()
        path.write_bytes(damaged(content, rng))
        try:
            read(path)
        except DataFileError as error:
            assert str(root) in str(error)
            failed[path.name] += 1
        path.write_bytes(content)
    assert set(failed) == {path.name for path, _ in pairs}
    assert failed.total() > count / 3
