"""Independent seeds from one, and the random generators' states."""

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
    """For each process the states of its generators: the CPU's and the GPU's."""
    return _of_all(fabric, _own_states(fabric))


def restore_random_states(fabric: Fabric, states: list[list[Tensor]]) -> None:
    """Set this process's generators to what ``random_states`` gave."""
    _set_own_states(fabric, states[min(fabric.global_rank, len(states) - 1)])


class Draws:
    """Jobs that take turns at torch's generators, as for dropout: each goes on where it was, as it would by itself.

    A job begins where the generators stand when it is ``added``. With one job there is nothing to do, and nothing is done.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self._states: dict[str, list[Tensor]] = {}

    def add(self, job: str) -> None:
        """From here on."""
        self._states[job] = _own_states(self.fabric)

    @contextmanager
    def turn_of(self, job: str) -> Iterator[None]:
        """What is drawn inside is the job's."""
        if len(self._states) < 2:
            yield
            return
        _set_own_states(self.fabric, self._states[job])
        yield
        self._states[job] = _own_states(self.fabric)

    def state(self) -> dict[str, list[list[Tensor]]]:
        """For each job the states in each process; all processes ask together."""
        return {job: _of_all(self.fabric, states) for job, states in self._states.items()}

    def load(self, state: dict[str, list[list[Tensor]]]) -> None:
        """Go on from ``state``."""
        self._states = {job: states[min(self.fabric.global_rank, len(states) - 1)] for job, states in state.items()}


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
