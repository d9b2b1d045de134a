"""Several nodes, as torchrun joins them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from node_run import train
from safetensors.torch import load_file


HERE = Path(__file__).parent


def start_nodes(nodes, processes, script, *words):
    """Starts `torchrun` once a node; the nodes find one another on this machine's loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", nodes, "--nproc_per_node", processes]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "test", script, *words]
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": ":".join(paths)}
    return [subprocess.Popen([str(word) for word in command], env=environment) for _ in range(nodes)]


@pytest.mark.slow
def test_two_nodes_of_two_processes_equal_one_process(tmp_path):
    nodes = start_nodes(2, 2, HERE / "node_run.py", tmp_path)
    try:
        train(tmp_path / "one", 4)
        assert [node.wait(600) for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            node.kill()
    places = sorted((tmp_path / f"place_{rank}").read_text() for rank in range(4))
    assert [place.split()[1:] for place in places] == [[*place, "2"] for place in ("00", "01", "10", "11")]
    last = Path("checkpoints") / "checkpoint-0000006"
    for file in (last / "model.safetensors", last / "ema.safetensors", Path("final") / "model.safetensors"):
        one = load_file(tmp_path / "one" / file)
        for name in ("whole", "parts"):
            several = load_file(tmp_path / name / file)
            assert one.keys() == several.keys()
            # Frozen, so that statistics are those of the start; all is float64.
            worst = max(float((one[key].double() - several[key].double()).abs().max()) for key in one)
            assert worst < 1e-12, (name, file, worst)
