"""Random numbers that are a function of their key alone: no state, the same on every device and in every process.

The mixing is that of SplitMix64 (Steele, Lea and Flood 2014), on int64 tensors, whose products wrap around.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB


class Purpose(IntEnum):
    """What the numbers are for; each has a sequence of its own."""

    ORDER = 1
    AUGMENT = 2
    AREA = 3
    LABELS = 4
    HOLD_OUT = 5
    SAMPLE = 6
    GUMBEL = 7
    SHUFFLE = 8
    VIEW = 9
    DISTORTION = 10


def key_of(seed: int, purpose: Purpose) -> int:
    """The key of one purpose under ``seed`` (any integer), as an int64."""
    return int(bits(int(bits(0, torch.tensor(_signed(seed)))), torch.tensor(int(purpose))))


def bits(key: int, *counters: Tensor) -> Tensor:
    """64 random bits for each combination of the counters, which broadcast: int64 of their common shape.

    With one counter it is the sequence of SplitMix64 seeded with ``key``:

    >>> [hex(int(b) % 2**64) for b in bits(0, torch.arange(2))]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    state: Tensor | int = _signed(key)
    for counter in counters:
        state = _mixed((counter + 1) * _signed(GAMMA) + state)
    assert isinstance(state, Tensor)
    return state


def uniform(random: Tensor) -> Tensor:
    """Random bits as numbers in [0, 1), float64."""
    return _shifted(random, 11).double() * 2.0**-53


def normal(random: Tensor) -> Tensor:
    """Random bits as numbers of the standard normal distribution, float64: its quantiles at the numbers in (0, 1).

    >>> normal(torch.tensor([2**62, -(2**63), -(2**62)])).round(decimals=4).tolist()  # quarter, half, three quarters
    [-0.6745, 0.0, 0.6745]
    """
    values: Tensor = torch.special.ndtri((_shifted(random, 12).double() + 0.5) * 2.0**-52)
    return values


def below(random: Tensor, count: int) -> Tensor:
    """Random bits as integers in [0, count), int64; ``count`` up to 2**31."""
    return (_shifted(random, 33) * count) >> 31


def _mixed(state: Tensor) -> Tensor:
    state = (state ^ _shifted(state, 30)) * _signed(FIRST)
    state = (state ^ _shifted(state, 27)) * _signed(SECOND)
    return state ^ _shifted(state, 31)


def _shifted(state: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros; that of int64 tensors brings in the sign."""
    return (state >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """``number`` modulo 2**64, as an int64."""
    return (number + 2**63) % 2**64 - 2**63
