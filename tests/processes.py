"""Functions in several processes, as torchrun starts them."""

import contextlib
import multiprocessing
import os
import signal
import socket

import torch
from accelerate.state import AcceleratorState, GradientState


def run_processes(function, world, *args, gpus=False):
    """Calls `function(*args)` in `world` processes with the environment that torchrun gives them.

    Without `gpus` they stay on the CPU, where two processes need no second device.
    """
    # Forking is quick, but CUDA that an earlier test has started does not work in a forked process.
    context = multiprocessing.get_context("spawn" if torch.cuda.is_initialized() else "fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS=1, ACCELERATE_USE_CPU=not gpus)
        process = context.Process(target=_run_one, args=(environment, function, args))
        process.start()
        processes.append(process)
    return processes


def _run_one(environment, function, args):
    os.environ.update({name: str(value) for name, value in environment.items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(1)
    # The process group ends with the process: gloo's own farewell waits for ever if the other side went first.
    function(*args)


def join(processes, timeout=300):
    """Waits for the processes; none may have failed. The time is for machines that have much else to do."""
    for process in processes:
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def error_of_both(function, folder, *args):
    """The error with which `function(folder, *args)` ends in both of two processes, as its type and message.

    Both have to say the same.
    """
    join(run_processes(_tell_error, 2, function, folder, args), timeout=120)
    first, second = ((folder / f"error_{rank}").read_text() for rank in range(2))
    assert first == second
    return first


def _tell_error(function, folder, args):
    try:
        function(folder, *args)
    except Exception as error:
        (folder / f"error_{os.environ['RANK']}").write_text(f"{type(error).__name__} {error}")
    # Taking a process group apart in the middle of an update may wait for a side that has gone; torchrun ends the
    # processes instead.
    os._exit(0)


def _hold(folder, connection):
    from bifusion_hf.io.locks import sole_use

    with sole_use(folder):
        connection.send(None)
        connection.recv()


@contextlib.contextmanager
def another_in(folder):
    """Another process works in a folder, as `sole_use` has it, until the block ends."""
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(folder, there), daemon=True)
    process.start()
    assert here.poll(60)
    here.recv()
    try:
        yield process
    finally:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
