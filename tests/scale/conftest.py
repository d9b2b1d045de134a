"""Two Ray nodes on this machine, and an S3 server; without the packages the tests that need them are skipped."""

import os
import uuid
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


@pytest.fixture
def bucket(monkeypatch):
    """Address of a bucket of an S3 server of its own, on loopback."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    import fsspec
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    # The server keeps its buckets beyond its end.
    name = f"frames-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
