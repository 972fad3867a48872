"""Rank, world size and the collectives by which several processes share one run.

torchrun starts N equal processes; `data_parallel()` joins them. Every process draws the same global batch, computes
its shard (`shard`) and gathers the outputs of the others (`all_gather`), so losses, decisions and history are the same
in all of them, and equal to those of one process up to rounding. All processes must reach every collective: code that
branches on a process-local value (a clock, a file) agrees on it by `any` or `from_main` first.
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

# The main process may load data or measure for hours while the others wait; a dead process is noticed at once.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class World:
    """The processes of a run, as seen by one of them. Only the main process (rank 0) prints and writes files.

    Attributes:
        rank: rank of this process, 0 <= rank < size.
        size: number of processes.
        local: rank on this machine, and so the number of its GPU.
        store: key-value store of the processes, if `data_parallel` made the process group.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    store: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process of rank 0."""
        return self.rank == 0

    def is_sharded(self, count: int) -> bool:
        """Whether a batch of `count` samples is split; every process computes all of a batch with fewer than `size`."""
        return self.size > 1 and count >= self.size

    def shard(self, count: int) -> slice:
        """Contiguous rows of a batch of `count` samples that this process computes; shard sizes differ by at most one.

        >>> [World(rank, 3).shard(8) for rank in range(3)]
        [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
        >>> World(1, 3).shard(2)
        slice(0, 2, None)
        """
        if not self.is_sharded(count):
            return slice(0, count)
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_gather(self, own: Tensor, count: int) -> Tensor:
        """Outputs of a global batch (count, ...) from the shard `own` (len, ...) of this process.

        A loss of the result is the loss of the global batch in every process. Its gradient reaches the own shard only,
        multiplied by `size`: DistributedDataParallel's mean over the processes is then the gradient of the global loss,
        also for terms that every process adds, such as a penalty on the weights.
        """
        if not self.is_sharded(count):
            return own
        import torch

        rows = self.shard(count)
        own = own.float() if own.dtype in (torch.bfloat16, torch.float16) else own
        full = own.new_zeros(count, *own.shape[1:])
        full[rows] = own.detach()
        full = self.all_reduce(full)
        if not own.requires_grad:
            return full
        live = own.view_as(own)
        live.register_hook(lambda gradient: gradient * self.size)
        return torch.cat([full[: rows.start], live, full[rows.stop :]])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place; no gradient."""
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Logical or over the processes."""
        if self.size == 1:
            return flag
        import torch

        return bool(self.all_reduce(torch.tensor([float(flag)])) > 0)

    def barrier(self) -> None:
        """Wait until all processes reach this point."""
        self.any(False)

    def from_main(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process only, and broadcast its result."""
        if self.size == 1:
            return make()
        import torch
        import torch.distributed as dist

        result = [make() if self.is_main else None]
        dist.broadcast_object_list(result, src=0, device=torch.device("cpu"))
        return cast(T, result[0])

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process executes the block first, so that the others can read files that it downloads or caches."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def broadcast_parameters(self, model: nn.Module) -> None:
        """Copy the state dict of the main process to all processes: rounding on GPUs may differ."""
        if self.size > 1:
            import torch
            import torch.distributed as dist

            with torch.no_grad():
                for tensor in model.state_dict().values():
                    dist.broadcast(tensor, src=0)

    def is_first_failure(self) -> bool:
        """Whether no other process has reported a failure yet; only the first one prints its reason."""
        try:
            return self.store is None or int(self.store.add("failed", 1)) == 1
        except RuntimeError:  # torchrun itself has ended
            return True


ALONE = World()
_joined: ContextVar[World] = ContextVar("world", default=ALONE)
_groups = itertools.count()


def current() -> World:
    """The processes of the innermost `data_parallel` block; outside of any block, this process alone."""
    return _joined.get()


def under_torchrun() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def data_parallel() -> Iterator[World]:
    """Within the context, `train`, `unlearn` and `evaluate` share their work with the other processes.

    Every process must make the same calls with the same arguments, on the same data. An existing process group is used
    (on GPUs it needs a CPU backend too: "cpu:gloo,cuda:nccl"); otherwise the processes that torchrun started are
    joined. A single process of torchrun runs alone.

        with expunge.data_parallel() as world:
            result = expunge.train(model, data)
            if world.is_main:
                result.save("trained")

    Raises:
        UsageError: if there is neither a process group nor torchrun.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise UsageError("this build of PyTorch has no torch.distributed; run without torchrun, in one process.")
    created = not dist.is_initialized()
    store = None
    if created and under_torchrun():
        store = _join(torch.cuda.is_available())
    elif created and "TORCHELASTIC_RUN_ID" not in os.environ:
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
    # Not after an error: it would wait for the others, which may wait for this process.
    if created and dist.is_initialized():
        dist.destroy_process_group()


def _join(gpus: bool) -> Any:
    """Make the process group of torchrun's processes; returns their key-value store."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    shared, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=30)))
    store = PrefixStore(f"expunge/{next(_groups)}", shared)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return store
