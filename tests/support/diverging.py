"""Networks and jobs that diverge when a test wants it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowstill.recipes.recipe import Job
from flowstill.transfer.procedures import alone
from support.engine_recipes import NET

MUCH = 1e30  # a learning rate at which every network diverges in its first updates


def diverging(steps: int = 6, **options: object) -> Job:
    """A job that diverges in its first stage."""
    return Job(NET, alone(steps, MUCH), **options)


class Failing(nn.Module):
    """A small network of the digits that gives NaN in training from one forward on, for a number of forwards."""

    def __init__(self, first: int, count: int = 10**9) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.first, self.count, self.calls = first, count, 0

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        if self.training and len(images) > 2:  # two are what is tried before training
            self.calls += 1
            if self.first <= self.calls < self.first + self.count:
                maps = maps * math.nan
        found: Tensor = self.head(self.norm(maps))
        return found


def failing(first: int, count: int = 10**9) -> Failing:
    """The same weights whenever it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Failing(first, count)
