"""The processes that train together, one a device: what they agree on, and whose word counts.

`torchrun` starts them and names each by its environment (RANK, WORLD_SIZE, LOCAL_RANK). Rank 0 alone reports, validates, writes and is
steered; it tells the others what to do. What they say to each other goes over gloo, gradients on GPUs over NCCL, averaged by torch's
DistributedDataParallel. A training in one process is a world of one, which never waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcaecore.errors import DcaeError, TrainingError

SIGNS_OF_DEATH = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
"""What gloo says of a process that is gone; it raises a plain RuntimeError."""
Thing = TypeVar("Thing")

PATIENCE = timedelta(days=7)
"""A pause may last. A process that dies is noticed at once all the same: its connections close, and torchrun ends the others."""


class World:
    """One process of `size`; `World()` is alone."""

    def __init__(self, rank: int = 0, size: int = 1, *, leads: bool = True) -> None:
        self.rank, self.size, self.leads = rank, size, leads
        """`leads`: the first process of its machine."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def decide(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        if self.size == 1:
            return number
        told = torch.tensor(number)
        dist.broadcast(told, 0)
        return int(told)

    def share(self, thing: Thing) -> Thing:
        """Rank 0's value, on every rank: anything that pickles, of moderate size."""
        if self.size == 1:
            return thing
        box = [thing]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def share_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors on the CPU, on every rank, one after the other: what a checkpoint holds may be large."""
        if self.size == 1:
            return dict(tensors)
        listed = self.share([(name, value.dtype, tuple(value.shape)) for name, value in tensors.items()])
        found = {}
        for name, dtype, shape in listed:
            value = tensors[name].detach().cpu().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            dist.broadcast(value, 0)
            found[name] = value
        return found

    def union(self, names: set[str]) -> set[str]:
        """The names of all ranks together."""
        if self.size == 1:
            return names
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, names)
        return set().union(*found)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks, without a gradient."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def gather(self, vector: Tensor) -> Tensor:
        """The vectors of all ranks, `(size, n)`."""
        found = vector.new_empty((self.size, len(vector)))
        dist.all_gather(list(found.unbind()), vector)
        return found

    def together(self, call: Callable[[], Thing]) -> Thing:
        """The call's result; a DcaeError of any rank is raised on every one, so that none waits for one that is gone."""
        if self.size == 1:
            return call()
        error: DcaeError | None = None
        try:
            made = call()
        except DcaeError as raised:
            error = raised
        failed = torch.tensor(int(error is not None))
        dist.all_reduce(failed)
        if not failed:
            return made
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(
            errors, None if error is None else (type(error), error.message, error.code, error.given, error.next)
        )
        kind, message, code, given, hint = next(found for found in errors if found is not None)
        raise error or kind(message, code=code, given=given, next=hint)

    def first(self, call: Callable[[], Thing]) -> Thing:
        """The call's result: rank 0 goes first (it may fill a cache), then the first process of each other machine, then the rest."""
        own = 0 if self.is_main else 1 if self.leads else 2
        made: list[Thing] = []
        for turn in range(3):
            self.together(lambda: made.append(call()) if turn == own else None)  # noqa: B023
        return made[0]

    def averaging(self, module: nn.Module) -> nn.Module:
        """The module, with its gradients averaged over the ranks in the backward pass, and rank 0's weights everywhere."""
        return module if self.size == 1 else DistributedDataParallel(module, forward_sync_buffers=False)


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that `torchrun` has started this process in, until it is left; alone where nothing has."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        with deaths_told():
            yield World(dist.get_rank(), size, leads=os.environ.get("LOCAL_RANK", "0") == "0")
    finally:
        dist.destroy_process_group()


@contextmanager
def deaths_told() -> Iterator[None]:
    """Inside, another process that is gone becomes a TrainingError; what went wrong there stands in that one's own output."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(sign in str(error) for sign in SIGNS_OF_DEATH):
            raise
        raise TrainingError(
            "Another process of this training has died.", code="rank_died",
            next="Its last words stand in the worker's log. Resume the job: it goes on from its last checkpoint.",
        ) from error  # fmt: skip
