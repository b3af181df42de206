"""Finds losses, gradients and weights that are not finite, and where they first appear."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from flowstill.errors import option
from flowstill.transfer.rules import Gradients
from flowstill.transfer.schedules import Constant

if TYPE_CHECKING:
    from flowstill.engine.step import Step
    from flowstill.engine.student import Student

LOOK_EVERY = 50  # updates between two looks
MOST_SKIPPED = 50  # steps in a row with a skipped update


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Whether all numbers in these tensors are finite: a boolean scalar, on the tensors' device."""
    given = (tensor.detach() for tensor in tensors if tensor is not None)
    floats = [tensor for tensor in given if tensor.is_floating_point() and tensor.numel()]
    return nn.utils.get_total_norm(floats, math.inf).isfinite()


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and running statistics by name. Other buffers may be infinite, as the masks of attention are."""
    statistics = {name: one for name, one in module.named_buffers() if name.endswith(("running_mean", "running_var"))}
    return {**dict(module.named_parameters()), **statistics}


def weights_not_finite(module: nn.Module) -> list[str]:
    """The names of its parameters and buffers that are not finite."""
    weights = weights_of(module)
    return [] if all_finite(weights.values()) else [name for name, one in weights.items() if not all_finite([one])]


def not_finite(fabric: Fabric, losses: Mapping[str, Tensor], gradients: Sequence[Gradients]) -> list[str]:
    """What is not finite in an update, in any process: losses by name, or else the gradient; empty if all is finite.

    The device is waited for once.
    """
    checks = [loss.isfinite() for loss in losses.values()] + [all_finite(g for row in gradients for g in row)]
    found = _anywhere(fabric, checks)
    return [repr(name) for name, bad in zip(losses, found, strict=False) if bad] or ["the gradient"] * any(found)


def diverged(step: Step) -> dict[str, str]:
    """The jobs with a loss or a weight that is not finite, or too many skipped updates -> what is wrong.

    The device is waited for once, whatever the number of jobs. All processes find the same jobs.
    """
    names: list[tuple[str, str]] = []
    checks: list[Tensor] = []
    for job, student in step.students.items():
        for term, total in step.means[job].sums.items():
            names.append((job, term))
            checks.append(total.isfinite())
        names.append((job, ""))
        checks.append(all_finite(weights_of(student.module).values()))
    lost: dict[str, list[str]] = {}
    for (job, term), bad in zip(names, _anywhere(step.fabric, checks), strict=True):
        if bad:
            lost.setdefault(job, []).append(term)
    found = {job: _sentence(step.students[job], [term for term in terms if term]) for job, terms in lost.items()}
    for job, means in step.means.items():
        if means.in_a_row >= min(MOST_SKIPPED, step.students[job].stage.steps):
            last = " and ".join(step.students[job].lost)
            found.setdefault(job, f"{means.in_a_row} updates in a row were skipped; not finite in the last: {last}")
    return {job: f"{text}{_origin(step, step.students[job])}" for job, text in found.items()}


def _anywhere(fabric: Fabric, checks: Sequence[Tensor]) -> list[bool]:
    """Which of these checks failed in at least one process."""
    failed = (~torch.stack([check.to(fabric.device) for check in checks])).float()
    if fabric.world_size > 1:
        summed = fabric.all_reduce(failed, reduce_op="sum")
        assert isinstance(summed, Tensor)
        failed = summed
    return [count > 0 for count in failed.tolist()]


def _sentence(student: Student, terms: Sequence[str]) -> str:
    """Which losses and weights are not finite."""
    parts = []
    if terms:
        parts.append(f"the loss{'es' if len(terms) > 1 else ''} {', '.join(map(repr, terms))}")
    weights = [name.removeprefix("student.") for name in weights_not_finite(student.module)]
    if weights:
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        parts.append(f"{'weights' if len(weights) > 1 else 'the weight'} {weights[0]!r}{more}")
    return f"not finite: {'; '.join(parts) or 'a weight in another process'}"


def _origin(step: Step, student: Student) -> str:
    """Where the numbers stop being finite on the latest batch, as the end of a sentence."""
    if step.batch is None:
        return ""
    images = step.batch.images
    if not all_finite([images]):
        return "; the images themselves are not finite"
    both = (
        ("", student.network, student.module.interface),
        ("the teacher's ", step.teacher.network, step.teacher.interface),
    )
    with step.fabric.autocast():
        for owner, network, interface in both:
            shown = interface.images(images) if interface else images
            if network is not None and (module := first_module(network, shown)) is not None:
                return f"; first in the output of {owner}{module or 'network'!r}"
    return ""


@torch.no_grad()
def first_module(network: nn.Module, images: Tensor) -> str | None:
    """The first module, in the order of the network's forward, whose output is not finite; None if all outputs are.

    One forward in the mode that the network is in. BatchNorm's statistics and the random state are left as they were.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU())
    >>> network[1].bias.data.fill_(float("nan")) is None
    False
    >>> first_module(network, torch.ones(1, 1, 2, 2))
    '1'
    """
    found: list[str] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if not found and not all_finite(tensors):
                found.append(name)

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()]
    kept = [buffer.clone() for buffer in network.buffers()]
    devices = [images.device] if images.is_cuda else []
    try:
        with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in zip(network.buffers(), kept, strict=True):
            buffer.copy_(before)
    return found[0] if found else None


def advice(job: str, student: Student, bf16: bool) -> str:
    """What to try for a job that diverged in this student's stage."""
    changes = []
    for name, player in student.stage.players.items():
        place = f"{job}.stages.{student.stage.name}" + ("" if len(student.stage.players) == 1 else f".players.{name}")
        if isinstance(player.lr, Constant):
            changes.append(option("set", f"{place}.lr={player.lr.value / 10:.3g}"))
        else:
            changes.append(f"a lower {option('set', f'{place}.lr=...')}")
    wide = f", or {option('precision', '32')} with another {option('out')}" if bf16 else ""
    return (
        f"Try a lower learning rate: {' '.join(changes)} with {option('resume', True)}, which "
        f"trains this job again{wide}."
    )
