"""Runs of train.py on several processes without torchrun, which takes ten seconds to start.

The processes are forked from one that has imported everything already, and find in their environment what torchrun
would put there.
"""

import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import train
from harness import messages

REPOSITORY = Path(train.__file__).parent


@dataclass
class Ended:
    """What one process left: its exit code, negative for a signal, and all it said."""

    code: int
    said: str


def one_rank(rank: int, size: int, port: int, argv: list[str], log: str, wide: bool) -> None:
    """What torchrun would start, in a process of its own."""
    if wide:
        narrow = train.Transformer
        train.Transformer, torch.Tensor.float = lambda *args: narrow(*args).double(), torch.Tensor.double
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv[0] = "train.py"
    torch.set_num_threads(1)
    messages.run_main(train.main, argv)


class Processes:
    """Several processes of one run, at work.

    Args:
        size: how many.
        argv: the flags of each.
        logs: a folder for what they say.
        wide: whether they compute in float64, which no option of train.py asks for.
    """

    def __init__(self, argv: list[list[str]], logs: Path, wide: bool = False) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["train", "torch.distributed.fsdp", "torch._dynamo"])
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(REPOSITORY), *sys.path]))  # for that process
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank-{rank}.log" for rank in range(len(argv))]
        self.ranks = [
            context.Process(target=one_rank, args=(rank, len(argv), port, flags, str(self.logs[rank]), wide))
            for rank, flags in enumerate(argv)
        ]
        for process in self.ranks:
            process.start()

    def wait(self, timeout: float = 3600) -> list[Ended]:
        """What each left, by rank; a process that does not end in time, in seconds, is killed."""
        for process in self.ranks:
            process.join(timeout)
            if process.is_alive():
                process.kill()
                process.join()
        return [Ended(process.exitcode, log.read_text()) for process, log in zip(self.ranks, self.logs, strict=True)]


def run_on(size: int, argv: list[str], logs: Path, wide: bool = False) -> list[Ended]:
    """A run on several processes, from beginning to end."""
    return Processes([argv] * size, logs, wide).wait()
