"""The part of the large reference files that is kept in the repository: frame B, and some numbers of every output.

python tests/weights/small_reference.py ../shared/reference
"""

import sys
from pathlib import Path

import numpy as np


SMALL_REFERENCE = Path(__file__).parents[1] / "fixtures" / "reference" / "esam_small.npz"
# Outputs -> the rows and columns that are kept: of features all columns, of logits all classes.
KEPT = {
    "rows": np.s_[:60],
    "point_feats_rows": np.s_[:60],
    "sp_feats": np.s_[:],
    "pool_w": np.s_[::40],
    **{f"cls_h{head}": np.s_[:] for head in range(4)},
    **{f"masks_h{head}": np.s_[::3] for head in (0, 1)},
    **{f"masks_h{head}_sel": np.s_[::5, ::10] for head in (2, 3)},
    "sel_queries": np.s_[::5],
    "sel_points": np.s_[::10],
    "sem": np.s_[::6],
}
INPUTS = ("points", "colors", "superpoints")


def cut(folder: Path) -> dict[str, np.ndarray]:
    """What is kept of the files in a folder: inputs by their name, outputs as NETWORK_NAME."""
    with np.load(folder / "esam_sv_B.npz") as single, np.load(folder / "esam_online_B.npz") as online:
        kept = {name: single[name] for name in INPUTS}
        for network, stored in (("sv", single), ("online", online)):
            kept.update({f"{network}_{name}": stored[name][part] for name, part in KEPT.items()})
    return kept


if __name__ == "__main__":
    np.savez_compressed(SMALL_REFERENCE, **cut(Path(sys.argv[1])))
