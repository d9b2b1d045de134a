"""Several nodes, as torchrun joins them."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from node_run import main, train
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run_node(port, folder):
    """What `torchrun --nnodes 2 --nproc_per_node 2` does, but that its processes are forks and import nothing."""
    os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint=f"localhost:{port}",
        run_id="test",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, main)(folder)


@pytest.mark.slow
def test_two_nodes_of_two_processes_equal_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The nodes find one another on this machine's loopback. CUDA that an earlier test has started does not fork.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
    nodes = [context.Process(target=run_node, args=(port, tmp_path)) for _ in range(2)]
    try:
        for node in nodes:
            node.start()
        train(tmp_path / "one", 4)
        for node in nodes:
            node.join(600)
        assert [node.exitcode for node in nodes] == [0, 0]
    finally:
        for node in nodes:
            if node.is_alive():
                # Not killed: it ends its processes.
                node.terminate()
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
