"""One run spread over several processes, which together compute what a single process would.

    torchrun --nproc_per_node=2 train.py --config configs/rope.yaml

Each process that torchrun starts is a rank: it knows its number and how many there are, and meets the others in
collectives, calls that every rank has to make, such as a sum over all ranks. docs/running.md says what each computes.
"""

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from harness.messages import BadInput, RunFailed
from harness.signals import Signals
from model import Transformer

T = TypeVar("T")
MADE_BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class World:
    """Where a process stands among those of its run; a process on its own is rank 0 of 1."""

    rank: int = 0  # its number among all, from 0
    size: int = 1  # how many there are
    local_rank: int = 0  # its number on its machine
    local_size: int = 1  # how many are on its machine

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def lead(self, do: Callable[..., T], *args: Any) -> T:
        """Let rank 0 alone do something, and give every rank the result. If it fails, it fails on all."""
        box = [self.together(do if self.leads else lambda *_: None, *args)]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, do: Callable[..., T], *args: Any) -> T:
        """Let every rank do something by itself, without collectives. If it fails on one rank, it fails on all."""
        if self.size == 1:
            return do(*args)
        result, error = None, None
        try:
            result = do(*args)
        except Exception as caught:  # the others must hear of it, or they would wait for this one
            error = caught
        failed = self.gather_objects(error and (isinstance(error, BadInput), str(error) or type(error).__name__))
        first = next((rank for rank, each in enumerate(failed) if each), None)
        if first is None:
            return result
        if error and (self.leads or not isinstance(error, BadInput | RunFailed | OSError | MemoryError)):
            raise error
        is_input, text = failed[first]
        self.end((BadInput if is_input else RunFailed)(f"on rank {first}: {text}"))

    def gather_objects(self, mine: Any) -> list[Any]:
        """The objects of all ranks, in rank order."""
        everyone = [mine] * self.size
        if self.size > 1:
            dist.all_gather_object(everyone, mine)
        return everyone

    def end(self, error: BadInput | RunFailed) -> NoReturn:
        """Raise an error that every rank has met: rank 0 says it, the others leave in silence with its exit code."""
        if self.leads:
            raise error
        raise SystemExit(2 if isinstance(error, BadInput) else 3)

    def refuse_unlike(self, facts: dict[str, Any]) -> None:
        """Raise BadInput, naming the first fact that differs, if ranks were not given the same options and data."""
        everyone = self.gather_objects(facts)
        for rank, theirs in enumerate(everyone):
            for name, value in theirs.items():
                if value != everyone[0][name]:
                    was = f"{name} {value} on rank {rank}, and {everyone[0][name]} on rank 0"
                    self.end(BadInput(f"{was}: give every machine the same command and data"))

    def merge_signals(self, signals: Signals) -> tuple[int | None, bool]:
        """The signal that asked any rank to stop, if one did, and whether any was asked to save. All ranks obey."""
        stop, save = self.reduce(signals.stop or 0, signals.save, by=dist.ReduceOp.MAX)
        return int(stop) or None, bool(save)

    def shares(self, n: int) -> list[tuple[int, int]]:
        """Each rank's share of n rows, as (start, stop) with stop excluded. Shares differ by at most one row."""
        return [(rank * n // self.size, (rank + 1) * n // self.size) for rank in range(self.size)]

    def parts(self, inputs: Tensor, targets: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
        """This rank's share of a batch, (B, T) each, in parts of at most `rows` rows, as many parts on every rank.

        A sharded model needs all ranks in each pass: a rank with fewer rows than others adds some that score nothing.
        """
        start, stop = self.shares(len(inputs))[self.rank]
        cuts = [slice(i, min(i + rows, stop)) for i in range(start, stop, rows)]
        parts = [(inputs[cut], targets[cut]) for cut in cuts]
        largest = -(-len(inputs) // self.size)  # rows
        idle = inputs[:1], torch.full_like(targets[:1], -100)
        return parts + [idle] * (-(-largest // rows) - len(parts))

    def reduce(self, *values: float, by: dist.ReduceOp = dist.ReduceOp.SUM) -> list[float]:
        """The sums, or maxima, of some numbers over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, by)
        return reduced.tolist()

    def choose_device(self, device: torch.device) -> torch.device:
        """The device for this rank: on GPUs, each rank has its own. Raises BadInput if there are too few."""
        if self.size == 1 or device.type == "cpu":
            return device
        if device.type != "cuda":
            raise BadInput(f"--run.device {device.type} serves one process alone: use --run.device cpu")
        if self.local_rank >= (there := torch.cuda.device_count()):
            raise BadInput(f"torchrun's --nproc_per_node {self.local_size} is more than the {there} GPUs of a machine")
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def choose_threads(self, asked: int | None) -> int | None:
        """How many CPU threads PyTorch uses: as many as asked for, or this rank's share of the machine's cores."""
        if asked is None and self.local_size > 1 and os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own choice
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return max(1, cores // self.local_size)
        return asked

    def spread(self, bare: Transformer, device: torch.device, shard: bool, compile: bool) -> nn.Module:
        """The model to train with, whose gradients are summed over ranks: by DDP, or if it is sharded by FSDP.

        Sharding changes `bare` itself: its parameters become this rank's shards, under the same names.
        """
        if shard:
            return shard_model(bare, self, device, compile)
        model = torch.compile(bare) if compile else bare
        if self.size == 1:
            return model
        model = DistributedDataParallel(model, device_ids=None if device.type == "cpu" else [device])
        model.register_comm_hook(None, sum_over_ranks)
        return model


ALONE = World()


@contextlib.contextmanager
def meet_processes() -> Iterator[World]:
    """Meet the processes that torchrun has started, if it has; ranks other than 0 are silent meanwhile.

    Raises:
        BadInput: for an environment that torchrun cannot have made. A shell or a cluster job may have left it over.
        RunFailed: if the processes do not come together, or one of them is gone.
    """
    given = [os.environ.get(name) for name in MADE_BY_TORCHRUN]
    world = World(*read_numbers(given)) if all(given) else ALONE
    try:
        if world.size > 1:
            before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python would hear it only once all have come
            dist.init_process_group(choose_backends(), store=agree_on_store(), rank=world.rank, world_size=world.size)
            signal.signal(signal.SIGTERM, before)
        with open(os.devnull, "w") as nobody:
            out, err = (sys.stdout, sys.stderr) if world.leads else (nobody, nobody)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                yield world
    except RuntimeError as error:
        signs = ("closed by peer", "reset by peer", "Broken pipe", "gloo", "NCCL")
        is_lost_peer = isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)
        if world.size == 1 or isinstance(error, RunFailed) or not is_lost_peer:  # those that have ended know why
            raise
        reason = " ".join(str(error).split())[:200]
        world.end(RunFailed(f"another process of this run has ended: go on with --run.resume true ({reason})"))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def read_numbers(given: list[str]) -> list[int]:
    """The numbers that torchrun put into the environment. Raises BadInput if torchrun cannot have set them."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if all(value.isdecimal() for value in given):
        rank, size, local_rank, local_size = map(int, given)
        fits = rank < size and local_rank < local_size <= size
        if fits and (size == 1 or (address and port.isdecimal())):
            return [rank, size, local_rank, local_size]
    values = " ".join(f"{name}={value}" for name, value in zip(MADE_BY_TORCHRUN, given, strict=True))
    where = f"with MASTER_ADDR={address} and MASTER_PORT={port}"
    raise BadInput(f"{values} in the environment, {where}, are not torchrun's: start with torchrun, or unset RANK")


def agree_on_store() -> dist.Store:
    """A part of torchrun's store that is new to all ranks of this start: through it they tell each other addresses.

    After a restart the store still holds what earlier ranks wrote, and a rank that is early would look for the others
    where they were (github.com/pytorch/pytorch/issues/135712). torchrun's own count of restarts does not help, as
    machines may count differently. So rank 0 makes up a name, and gives it to whoever asks, until all have thanked it
    by that name: what it finds asked may be from the start before, thanks cannot be.
    """
    store, rank, size = next(rendezvous("env://"))
    name, waiting = uuid.uuid4().hex, set() if rank else set(range(1, size))
    if rank:
        store.set(f"asked-by-{rank}", name)
        name = store.get(f"answer-to-{name}").decode()
        store.set(f"{name}-thanks-{rank}", "")
    while waiting:
        for other in sorted(waiting):
            if store.check([f"asked-by-{other}"]):
                store.set(f"answer-to-{store.get(f'asked-by-{other}').decode()}", name)
            if store.check([f"{name}-thanks-{other}"]):
                waiting.remove(other)
        time.sleep(0.01)
    return dist.PrefixStore(name, store)


def choose_backends() -> str:
    """What carries collectives: gloo between CPUs, so also all that ranks agree on, and nccl between GPUs."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def sum_over_ranks(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's hook for a bucket of gradients: their sum. Undoing DDP's mean would not be exact for 3 ranks or 5."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def shard_model(bare: Transformer, world: World, device: torch.device, compile: bool) -> Transformer:
    """A model whose every parameter is split by its first dimension, a shard on each rank (FSDP2).

    Each block is gathered by itself, so that one block's weights are whole at a time; embedding, norm and position
    belong to the model. It works with one rank too.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard  # here and not above: it takes seconds

    if not dist.is_initialized():  # no torchrun: a group of one
        dist.init_process_group(choose_backends(), store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (world.size,))
    for part in (*bare.blocks, bare):
        if compile and part is not bare:
            part.compile()
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # outside of a pass there are only shards
        part.set_gradient_divide_factor(1.0)  # a sum over ranks, as above
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return bare


@contextlib.contextmanager
def sum_gradients(model: nn.Module, now: bool) -> Iterator[None]:
    """The context of one pass of several: gradients add up on each rank, and are summed over ranks in the last one."""
    if hasattr(model, "set_requires_gradient_sync"):  # FSDP's
        model.set_requires_gradient_sync(now)
    with contextlib.nullcontext() if now or not isinstance(model, DistributedDataParallel) else model.no_sync():
        yield


def gather_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may hold a shard. Every rank has to call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # DTensor's; its import takes seconds


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on another's device, or this rank's shard of it if that is a shard of one of the same shape."""
    tensor = tensor.to(like.device)
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # without the other ranks


def gather_model(bare: Transformer) -> Transformer:
    """A model with all its weights on this rank: itself, or a whole copy if it is sharded. Every rank must call it."""
    if not hasattr(bare, "set_requires_gradient_sync"):
        return bare
    copy = Transformer(bare.config).to(bare.embedding.weight.device)
    copy.load_state_dict({name: gather_tensor(tensor) for name, tensor in bare.state_dict().items()})
    return copy
