"""Two Ray nodes on this machine, and an S3 server on loopback; without these packages the tests are skipped."""

import os
from pathlib import Path

import pytest


# Nothing tells anybody that Ray is used.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def ray_cluster():
    """A cluster of two nodes with a core each; this process is its driver."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # What the tests hand to workers is found by its module.
    here = Path(__file__).parent
    known = [str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ.update(PYTHONPATH=os.pathsep.join(known), OMP_NUM_THREADS="1")
    options = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(address=cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
