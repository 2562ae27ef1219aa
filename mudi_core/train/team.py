"""Several processes that train one LoRA together, each with a share of the batches of every step."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from ..types import MudiError


class BrokenTeam(MudiError):
    """Processes that cannot train together."""


@dataclass(frozen=True)
class Team:
    """The place of a process among those that train together. A single process does everything itself."""

    rank: int = 0
    """0 is the leader: only it writes files and messages."""
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of the ``count`` batches of a step belong to this process."""
        return range(self.rank, count, self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, float32 or float64, by its sum over all processes; all get the same bits."""
        if self.size == 1:
            return
        on_card = distributed.get_backend() == "nccl"
        for dtype in {tensor.dtype for tensor in tensors}:
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            flat = flat.to("cuda" if on_card else "cpu")
            distributed.all_reduce(flat)
            for tensor, total in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(total.reshape(tensor.shape))

    def agree(self, words: str, what: str) -> None:
        """Raise `BrokenTeam` in every process unless all of them pass the same words. ``what``: a name for them."""
        digest = hashlib.sha256(words.encode()).digest()
        ours = torch.tensor([[byte, byte**2] for byte in digest], dtype=torch.float64)
        total = ours.clone()
        self.add_up([total])
        # Sums may be equal by chance; the sums of the squares are equal too only when all values are.
        if not torch.equal(total, self.size * ours):
            raise BrokenTeam(f"The processes have different {what}. Give all of them the same files and settings.")

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def team_size() -> int:
    """Return how many processes a launcher (accelerate, torchrun) has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine: the number of the card to use."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Yield the team in the launcher's environment, as long as the block lasts. Raise `BrokenTeam`."""
    if team_size() == 1:
        yield Team()
        return
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError, KeyError) as error:
        raise BrokenTeam(
            f"The processes cannot find each other ({str(error).splitlines()[0]}). Start them with accelerate launch."
        ) from error
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
