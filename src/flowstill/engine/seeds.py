"""Independent seeds from one, and the random generators' states."""

from __future__ import annotations

import hashlib

import torch
from lightning_fabric import Fabric
from torch import Tensor


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, and on nothing else.

    >>> derive(0, "student", "init") == derive(0, "student", "init") != derive(1, "student", "init")
    True
    """
    text = "\0".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def random_states(fabric: Fabric) -> list[list[Tensor]]:
    """For each process the states of its generators: the CPU's and the GPU's."""
    mine = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if fabric.device.type == "cuda" else [])
    if fabric.world_size == 1:
        return [mine]
    gathered: list[list[Tensor]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def restore_random_states(fabric: Fabric, states: list[list[Tensor]]) -> None:
    """Set this process's generators to what ``random_states`` gave."""
    mine = states[min(fabric.global_rank, len(states) - 1)]
    torch.set_rng_state(mine[0])
    if len(mine) > 1 and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(mine[1])
