"""The processes that share one run: who they are, and the few things they say to each other.

torchrun starts N equal processes; `data_parallel()` joins them. Every process draws the same global batch, computes
its rows (`rows`) and learns the outputs of the others (`whole`), so losses, decisions and history are the same in
all of them, and equal to those of one process up to rounding. Collectives must be met by all: code that branches on
something that only one process knows (a clock, a file) asks `any` or `from_first` before.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from expunge.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

# The first process may load data or measure for hours while the others wait; a process that died is noticed at once.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """rank: of this process, 0 <= rank < size. local: its number on this machine, thus its GPU.

    Only the first process (rank 0) prints and writes files.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: Any = None  # key-value store of the processes, if `data_parallel` made the group

    @property
    def several(self) -> bool:
        return self.size > 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shares(self, count: int) -> bool:
        """Whether a batch of `count` samples is split; one with fewer samples than processes is done by each whole."""
        return self.several and count >= self.size

    def rows(self, count: int) -> slice:
        """The contiguous rows of a batch of `count` samples that this process computes; parts differ by one at most.

        >>> [World(rank, 3).rows(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        >>> World(1, 3).rows(2)
        slice(0, 2, None)
        """
        if not self.shares(count):
            return slice(0, count)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def whole(self, own: Tensor, count: int) -> Tensor:
        """Outputs (count, ...) of a batch from the rows (len, ...) of this process.

        A loss of the result is the loss of the global batch in every process. Its gradient reaches the own rows only,
        times `size`: DistributedDataParallel's mean over the processes is then the gradient of the global loss, also
        for terms that every process adds alike, such as a penalty on the weights.
        """
        if not self.shares(count):
            return own
        import torch

        rows = self.rows(count)
        own = own.float() if own.dtype in (torch.bfloat16, torch.float16) else own
        full = own.new_zeros(count, *own.shape[1:])
        full[rows] = own.detach()
        full = self.total(full)
        if not own.requires_grad:
            return full
        live = own.view_as(own)
        live.register_hook(lambda gradient: gradient * self.size)
        return torch.cat([full[: rows.start], live, full[rows.stop :]])

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place; no gradient."""
        if self.several:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """True in all processes if it is in one."""
        if not self.several:
            return flag
        import torch

        return bool(self.total(torch.tensor([float(flag)])) > 0)

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process; the others do not call it."""
        if not self.several:
            return make()
        import torch
        import torch.distributed as dist

        found = [make() if self.first else None]
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return cast(T, found[0])

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process goes ahead, so that the others find files that it downloads or caches."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def align(self, model: nn.Module) -> None:
        """Every process takes the tensors of the first one: rounding on GPUs may differ."""
        if self.several:
            import torch
            import torch.distributed as dist

            with torch.no_grad():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def fails_first(self) -> bool:
        """Whether no other process has failed yet: the one that has is the one to say why."""
        try:
            return self.store is None or int(self.store.add("failed", 1)) == 1
        except RuntimeError:  # torchrun itself is gone
            return True


ALONE = World()
_joined: ContextVar[World] = ContextVar("world", default=ALONE)
_groups = itertools.count()


def current() -> World:
    """The processes of the innermost `data_parallel` block; outside of any, this one alone."""
    return _joined.get()


def under_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def data_parallel() -> Iterator[World]:
    """Inside the block `train`, `unlearn` and `evaluate` share their work with the other processes.

    Every process must make the same calls with the same arguments, on the same data; `world.first` tells who writes.
    Uses the process group that exists (on GPUs it must serve the CPU too: "cpu:gloo,cuda:nccl"), else joins the
    processes that torchrun started; a single one just goes on. Raises `UsageError` if there is nothing to join.

        with expunge.data_parallel() as world:
            result = expunge.train(model, data)
            if world.first:
                result.save("trained")
    """
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("this build of PyTorch has no torch.distributed; run without torchrun, in one process.")
    made = not dist.is_initialized()
    store = None
    if made and under_torchrun():
        store = _join(torch.cuda.is_available())
    elif made and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise UsageError("there are no processes to join; start this with `torchrun --nproc-per-node N`.")
    world = ALONE
    if dist.is_initialized():
        rank = dist.get_rank()
        world = World(rank, dist.get_world_size(), int(os.environ.get("LOCAL_RANK", rank)), store)
    token = _joined.set(world)
    try:
        yield world
    finally:
        _joined.reset(token)
    # Not after an error: it would wait for the others, who may wait for this process.
    if made and dist.is_initialized():
        dist.destroy_process_group()


def _join(gpus: bool) -> Any:
    """Make the process group of torchrun's processes; returns their store."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    found, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=30)))
    store = dist.PrefixStore(f"expunge/{next(_groups)}", found)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return store
