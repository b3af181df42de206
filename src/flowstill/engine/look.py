"""Checks trained networks before anything is trained with them: a few seconds that can save a night."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowstill.engine.doubts import Seen, doubts
from flowstill.engine.finite import weights_of
from flowstill.engine.interface import Interface, Output
from flowstill.engine.networks import ready
from flowstill.errors import NetworkError
from flowstill.features.modules import logits_in
from flowstill.nets import fit_weights, recorded_accuracy, weights_file
from flowstill.nets.published import metadata_in
from flowstill.recipes.check import JobPlan
from flowstill.recipes.recipe import Job, Recipe, Weights

if TYPE_CHECKING:
    from flowstill.data import ImageData

IMAGES, AT_MOST = 256, 1000  # looked at; where there are many classes
SECONDS, CHUNK = 5.0, 32
_log = logging.getLogger("flowstill")


class Look:
    """Looks at a run's trained networks.

    Args:
        networks: of the jobs that are given as objects.
        interfaces: of all jobs.
        plans: likewise.
        device: where to run them.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        networks: Mapping[str, nn.Module],
        interfaces: Mapping[str, Interface],
        plans: Mapping[str, JobPlan],
        device: str,
    ) -> None:
        self.recipe, self.data, self.networks = recipe, data, networks
        self.interfaces, self.plans, self.device = dict(interfaces), plans, torch.device(device)

    def at(self, names: tuple[str, ...]) -> dict[str, Interface]:
        """Look at these jobs' networks and log a warning about anything odd.

        Returns:
            All jobs' interfaces, with the meaning that was found for each network's outputs.

        Raises:
            NetworkError: weights or outputs are not finite, or outputs cannot be read as logits.
        """
        teachers = {self.recipe.jobs[name].teacher for name in names}
        for name, job in self.recipe.jobs.items():
            begins = job.weights or isinstance(job.start, Weights)
            finished = bool(job.weights) or not job.stages
            if not (name in names or name in teachers) or not (begins or finished or name in self.networks):
                continue
            network = self._network(name, job)
            check_finite_weights(network, f"job {name!r}: {job.network.name.removeprefix('object:')}")
            if finished and name in teachers:
                self._look(name, job, network)
        return self.interfaces

    def _network(self, name: str, job: Job) -> nn.Module:
        """The job's network with the weights that it starts from, on the device, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            shape, classes = self.interfaces[name].shape, len(self.data.classes)
            network = ready(self.networks.get(name), job.network, shape, classes, trains=job.trains)
        path = job.weights or (job.start.weights if isinstance(job.start, Weights) else None)
        if path:
            fit_weights(network, path)  # its notices were given when the recipe was checked
        return network.to(self.device).eval()

    def _look(self, name: str, job: Job, network: nn.Module) -> None:
        interface = self.interfaces[name]
        whose = f"teacher {name!r} ({job.network.name.removeprefix('object:')})"
        images, labels = self.data.test_sample(min(AT_MOST, max(IMAGES, 8 * len(self.data.classes))))
        begun = time.perf_counter()
        first = run(network, interface, images[:CHUNK], self.device)
        each = (time.perf_counter() - begun) / len(first)
        count = max(CHUNK, min(len(images), int(SECONDS / max(each, 1e-9))))
        outputs = torch.cat([first, run(network, interface, images[CHUNK:count], self.device)])
        check_finite_outputs(outputs, whose)
        if not self.plans[name].measured or outputs.ndim != 2:
            return
        output = meaning(outputs, whose)
        if output == "probabilities":
            _log.warning(
                f"{whose} returns probabilities, as from a softmax. Their logarithm is used as logits; removing the "
                "softmax from the network is more exact."
            )
        elif bool((outputs <= 0).all()) and bool((outputs.logsumexp(1).abs() < 1e-3).all()):
            _log.info(f"{whose} gives log-probabilities, as from a log_softmax. They serve as logits as they are.")
        self.interfaces[name] = interface = replace(interface, output=output)
        if self.data.synthetic:
            return
        seen = Seen(name, whose, network, interface, images[:count], labels[:count], outputs, self.device)
        recorded = _recorded(job, self.data.spec.name)
        for doubt in doubts(seen, self.data.classes, recorded, _classes_in(job), spare=SECONDS / max(each, 1e-9)):
            _log.warning(doubt)


@torch.no_grad()
def run(network: nn.Module, interface: Interface, images: Tensor, device: torch.device) -> Tensor:
    """The outputs of a network in eval mode for test images, on the CPU, float32."""
    return torch.cat(
        [
            logits_in(network(interface.images(part.to(device), testing=True))).float().cpu()
            for part in torch.split(images, CHUNK)
        ]
        or [torch.empty(0)]
    )


def check_finite_weights(network: nn.Module, whose: str) -> None:
    """Check that weights and running statistics are finite, and that other buffers are numbers.

    Raises:
        NetworkError: one is not finite; names the first such tensor.
    """
    weights = weights_of(network)
    for name, tensor in {**weights, **dict(network.named_buffers())}.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        bad = ~tensor.isfinite() if name in weights else tensor.isnan()
        if wrong := int(bad.sum()):
            raise NetworkError(
                f"{whose}: {wrong} of {tensor.numel()} values of {name!r} are not finite (NaN or infinite). The "
                "training may have diverged, or the file was written in half precision. Use an earlier checkpoint."
            )


def check_finite_outputs(outputs: Tensor, whose: str) -> None:
    """Check that outputs are finite; -inf may stand for a class that is ruled out.

    Raises:
        NetworkError: some are not.
    """
    wrong = outputs.isnan() | (outputs == math.inf)
    wrong |= (outputs == -math.inf).flatten(1).all(1).view(-1, *[1] * (outputs.ndim - 1))
    if bool(wrong.any()):
        bad = int(wrong.flatten(1).any(1).sum())
        raise NetworkError(
            f"{whose}: the outputs for {bad} of {len(outputs)} test images are not finite, though all weights are. "
            "Check whether a normalisation layer has a running variance of zero, and whether it expects other inputs."
        )


def meaning(outputs: Tensor, whose: str) -> Output:
    """Whether outputs (N, classes) are logits (log-probabilities too) or probabilities.

    Raises:
        NetworkError: they lie between 0 and 1 but do not sum to 1, as from a sigmoid.
    """
    if bool((outputs < -1e-6).any()) or bool((outputs > 1 + 1e-3).any()) or outputs.shape[1] < 2:
        return "logits"
    if bool(((outputs.sum(1) - 1).abs() < 1e-2).all()):
        return "probabilities"
    if len(outputs) * outputs.shape[1] < 64 or bool((outputs == outputs[0, 0]).all()):  # too few numbers to tell
        return "logits"
    raise NetworkError(
        f"{whose}: all outputs lie between 0 and 1 but do not sum to 1, as from a sigmoid. Expected logits. Return the "
        "values before the sigmoid."
    )


def _recorded(job: Job, data: str) -> float | None:
    """The accuracy in percent that a network's weights file records, unless it was measured on other data."""
    if not job.weights:
        return None
    of = metadata_in(weights_file(job.weights)[0]).get("data")
    return recorded_accuracy(job.weights) if of in (None, data) else None


def _classes_in(job: Job) -> tuple[str, ...] | None:
    """The names of the classes in the order of the network's outputs, if its file records them."""
    text = metadata_in(weights_file(job.weights)[0]).get("classes") if job.weights else None
    try:
        names = json.loads(text) if text else None
    except ValueError:
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None
