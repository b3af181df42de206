"""One job in one stage: its network with the stage's losses, and the players that move them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from flowstill.engine.interface import Interface
from flowstill.engine.player import ActivePlayer
from flowstill.errors import RecipeError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Tap, Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.nets.beside import split
from flowstill.transfer.knowledge import Loss, Setting, Target
from flowstill.transfer.schedules import Schedule
from flowstill.transfer.stages import Stage, Term, Update


@dataclass(frozen=True, eq=False)
class LossTerm:
    """A term of an update with its loss.

    Attributes:
        name: in the metrics.
        task: of the task, not of the transfer.
    """

    name: str
    term: Term
    loss: Loss
    task: bool

    @property
    def weight(self) -> Schedule:
        """How much it counts, over the stage."""
        return self.term.weight


class StudentWithLosses(nn.Module):
    """A student with all losses of a stage, so that one wrapper (DDP, autocast) holds everything that trains."""

    def __init__(
        self,
        student: nn.Module,
        updates: Sequence[Update],
        terms: Sequence[Sequence[LossTerm]],
        interface: Interface | None = None,
    ) -> None:
        super().__init__()
        self.student, self.interface = student, interface
        self.losses = nn.ModuleList(term.loss for row in terms for term in row)
        self.updates, self.terms = tuple(updates), tuple(map(tuple, terms))
        self._tapped = tuple(_tap(student, row) for row in self.terms)  # in a tuple: the student is registered once

    def forward(self, images: Tensor, update: int, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Losses by name, float32 scalars, of one fresh forward of the student."""
        if self.interface is not None:
            images = self.interface.images(images)
        if self.updates[update].update_batchnorm:
            reading = self._tapped[update](images)
        else:
            with frozen_statistics(self.student):
                reading = self._tapped[update](images)
        pairs = zip(self.terms[update], targets, strict=True)
        return {term.name: term.loss.compare(reading, target) for term, target in pairs}

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules that can move, by role."""
        found: dict[str, list[nn.Module]] = {"student": [self.student]}
        for loss in self.losses:
            assert isinstance(loss, Loss)
            for role, module in loss.parts().items():
                found.setdefault(role, []).append(module)
        return found


class Student:
    """A job's network in one stage; ``engine.step`` runs its updates.

    cycle: the numbers of the updates that each batch of the stage's cycle runs. updates, terms: by an update's number.

    Args:
        student: the job's network, on the device.
        pairs: the teacher's sections with the student's.
        setting: what losses with networks of their own need.
        micro_batches: number of parts that each batch is split into; their gradients are summed.
        interface: how the network sees the images; None if it takes them as they are.

    Raises:
        RecipeError: a player differentiates the whole batch's gradient, but no process ever has all of it.
    """

    def __init__(
        self,
        fabric: Fabric,
        student: nn.Module,
        stage: Stage,
        pairs: Pairs,
        setting: Setting,
        micro_batches: int = 1,
        interface: Interface | None = None,
    ) -> None:
        self.stage, self.updates, self.micro_batches = stage, stage.updates, micro_batches
        numbers = iter(range(len(self.updates)))
        self.cycle = [[next(numbers) for _ in batch] for batch in stage.cycle]
        self.terms = [tuple(row) for row in build_terms(stage, pairs, setting)]
        self.module = StudentWithLosses(student, self.updates, self.terms, interface).to(fabric.device).train()
        self._trainable = [(p, p.requires_grad) for p in self.module.parameters()]
        parts, own = self.module.parts(), set(student.parameters())
        self.players: dict[str, ActivePlayer] = {}
        for name, player in stage.players.items():
            modules = [module for role in player.modules for module in parts.get(role, [])]
            active = self.players[name] = ActivePlayer(player, trainable_parameters(modules), own)
            if active.second_order and fabric.world_size * micro_batches > 1:
                raise RecipeError(
                    f"player {name!r}: 'double_backward' differentiates the whole batch's gradient, but several processes "
                    "or 'data.accumulate' compute it in parts. Use one process and no 'accumulate', or mode 'recode'."
                )
        self.wrapped = fabric.setup_module(self.module)
        self._moving = [
            set(self.players[update.player].parameters) - self._frozen(number, setting.shape)
            for number, update in enumerate(self.updates)
        ]
        self.let_move(0)
        self.moves_alike = all(moving == self._moving[0] for moving in self._moving)
        self.lost: list[str] = []  # what was not finite in the last skipped update

    @property
    def network(self) -> nn.Module:
        """The job's network, bare."""
        return self.module.student

    def let_move(self, number: int) -> None:
        """Let gradients reach only what update ``number`` moves."""
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter in self._moving[number])

    def skip(self, lost: list[str], buffers: Sequence[Tensor]) -> None:
        """Undo what an update's forward did to the buffers, such as BatchNorm's statistics.

        Args:
            lost: what was not finite in the update.
            buffers: as they were before it.
        """
        self.lost = lost
        for buffer, before in zip(self.module.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def _frozen(self, number: int, shape: Sequence[int]) -> set[nn.Parameter]:
        """What stays as it is in update ``number`` because one of its losses says so."""
        taps = {tap for term in self.terms[number] if (tap := term.loss.frozen_below)}
        return {p for tap in taps for p in parameters_below(self.network, tap, shape)}

    def close(self) -> None:
        """Let gradients reach again what they reached before the stage."""
        for parameter, trains in self._trainable:
            parameter.requires_grad_(trains)

    def state(self) -> dict[str, Any]:
        """Weights and optimisers, to continue from exactly here."""
        return {
            "learner": saved_state(self.module),
            "movers": {name: player.state() for name, player in self.players.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        whole = self.module.state_dict()  # what could not be saved stays unchanged
        if missing := saved_state(self.module).keys() - state["learner"].keys():
            raise LookupError(f"it lacks {min(missing)!r}")
        whole.update(state["learner"])
        self.module.load_state_dict(whole)
        for name, player in self.players.items():
            player.load(state["movers"][name])


def saved_state(module: nn.Module) -> dict[str, Any]:
    """The state dict without values that cannot be loaded safely; a warning before the first update names them."""
    state = module.state_dict()
    lost = split(state)[2]
    return {name: value for name, value in state.items() if name not in lost}


def build_terms(stage: Stage, pairs: Pairs, setting: Setting) -> list[list[LossTerm]]:
    """The terms of every update. Equal terms share one loss, and so what it owns."""
    built: dict[str, Loss] = {}

    def one(term: Term, task: bool, taken: set[str]) -> LossTerm:
        key = repr(term.knowledge)
        if key not in built:
            built[key] = term.knowledge.build(pairs, setting)
        name = term.knowledge.name
        while name in taken:
            name += "'"
        taken.add(name)
        return LossTerm(name, term, built[key], task)

    rows = []
    for update in stage.updates:
        taken: set[str] = set()
        rows.append([one(t, True, taken) for t in update.task] + [one(t, False, taken) for t in update.transfer])
    return rows


def _tap(student: nn.Module, terms: Sequence[LossTerm]) -> Tapped:
    """Read what these terms need of the student, and run it no further."""
    taps = dict.fromkeys(tap for term in terms for tap in term.loss.student_taps)
    return Tapped(student, taps, until="logits" if any(t.loss.student_logits for t in terms) else "taps")


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as in training, but its running statistics stay as they are."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var, norm.track_running_stats = mean, variance, True


def trainable_parameters(modules: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Their parameters that require gradients, each once, in order; what the user froze stays frozen."""
    return list(dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad))


def parameters_below(network: nn.Module, tap: Tap, shape: Sequence[int]) -> set[nn.Parameter]:
    """The parameters that train and that the map at ``tap`` depends on, found by one forward in eval mode and its gradient.

    Args:
        shape: of the images, (C, H, W).

    Raises:
        TapError: there is no such tap.
        NetworkError: the network cannot take the images. It is left as it was.

    >>> network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    >>> parameters_below(network, Tap("0"), (1, 5, 5)) == set(network[0].parameters())
    True
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    images = example_images(network, shape)
    with undisturbed(network, images.device):
        found = read_once(Tapped(network, [tap], until="taps"), images)[tap]
        if not found.requires_grad:
            return set()
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    return {p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
