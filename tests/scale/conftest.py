"""Two Ray nodes on this machine; without the package the tests that need them are skipped."""

import os
from pathlib import Path

import pytest

from scripts.benchmarks.scale import two_nodes


# Nothing tells anybody that Ray is used.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def ray_cluster():
    """A cluster of two nodes with a core each; this process is its driver."""
    pytest.importorskip("ray")
    # What the tests hand to workers is found by its module.
    here = Path(__file__).parent
    known = [str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ.update(PYTHONPATH=os.pathsep.join(known), OMP_NUM_THREADS="1")
    with two_nodes():
        yield
