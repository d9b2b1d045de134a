import numpy as np
from ply_files import read_comments, read_ply

from bifusion_hf.visualization import write_ply


def test_names_are_comments_that_no_reader_minds(tmp_path):
    points = np.zeros((2, 3), dtype=np.float32)
    names = {0: "office chair", 7: "Tür\nproperty float evil"}
    write_ply(tmp_path / "a.ply", points, np.zeros((2, 3), dtype=np.uint8), instance=np.array([0, 7]), names=names)
    assert read_comments(tmp_path / "a.ply") == ["instance 0 office chair", "instance 7 T\\xfcr property float evil"]
    assert read_ply(tmp_path / "a.ply")["instance"].tolist() == [0, 7]
