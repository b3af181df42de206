"""Independent seeds derived from one, and the states of the random generators."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
    """The states of each process's generators, the CPU's and the GPU's."""
    return _of_all(fabric, _own_states(fabric))


def restore_random_states(fabric: Fabric, states: list[list[Tensor]]) -> None:
    """Set this process's generators to states from ``random_states``."""
    _set_own_states(fabric, states[min(fabric.global_rank, len(states) - 1)])


class RandomSequences:
    """Jobs take turns at torch's generators, as for dropout: each continues its own sequence, as if it ran alone.

    A job begins where the generators stand when it is added. With a single job this does nothing.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.states: dict[str, list[Tensor]] = {}

    def add(self, job: str) -> None:
        """Start the job's sequence where the generators stand."""
        self.states[job] = _own_states(self.fabric)

    @contextmanager
    def turn_of(self, job: str) -> Iterator[None]:
        """Draw from the job's sequence inside the block."""
        if len(self.states) < 2:
            yield
            return
        _set_own_states(self.fabric, self.states[job])
        yield
        self.states[job] = _own_states(self.fabric)

    def state(self) -> dict[str, list[list[Tensor]]]:
        """Each job's states in each process. All processes must call this together."""
        return {job: _of_all(self.fabric, states) for job, states in self.states.items()}

    def load(self, state: dict[str, list[list[Tensor]]]) -> None:
        """Continue from ``state``."""
        rank = self.fabric.global_rank
        self.states = {job: state[job][min(rank, len(state[job]) - 1)] for job in self.states}


def _own_states(fabric: Fabric) -> list[Tensor]:
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if fabric.device.type == "cuda" else [])


def _set_own_states(fabric: Fabric, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1 and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(states[1])


def _of_all(fabric: Fabric, mine: list[Tensor]) -> list[list[Tensor]]:
    if fabric.world_size == 1:
        return [mine]
    gathered: list[list[Tensor]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(gathered, mine)
    return gathered
