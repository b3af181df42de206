"""Tries each network before the first update, so that nothing fails after the last one or silently trains nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import safetensors.torch
import torch
from torch import Tensor, nn

from flowstill.engine.networks import ready
from flowstill.errors import NetworkError, TapError
from flowstill.features.copying import copied
from flowstill.features.modules import Shape, logits_in, unregistered
from flowstill.features.taps import Tap, Tapped
from flowstill.features.tracing import example_images, run_once, undisturbed
from flowstill.nets.beside import read_beside
from flowstill.nets.checkpoints import as_bytes, left_out
from flowstill.nets.contents import find_state
from flowstill.nets.weights import load_state
from flowstill.recipes.check import JobPlan
from flowstill.recipes.recipe import Job, Recipe

_log = logging.getLogger("flowstill")


def try_jobs(
    recipe: Recipe,
    plans: Mapping[str, JobPlan],
    networks: Mapping[str, nn.Module],
    shapes: Mapping[str, Shape],
    classes: int,
    device: str,
    done: Collection[str] = (),
) -> None:
    """Copy, save and load each job's network, and run those that train in training mode, on two images.

    Args:
        recipe: the jobs; equal ones are tried once.
        plans: what each job reads.
        networks: copies of networks that were given as objects.
        shapes: (C, H, W) of what each job's network sees.
        classes: of the data.
        device: where the run will be.
        done: jobs that need no trial.

    Raises:
        NetworkError: a network fails; the message begins with the job's name.
        TapError: a student's map has no gradient.
    """
    tried: list[tuple[object, ...]] = []
    for name, job in recipe.jobs.items():
        kind = (networks.get(name), repr(job.network), shapes[name], job.trains, plans[name].terms)
        if name in done or kind in tried:
            continue
        tried.append(kind)
        try:
            _try(job, plans[name], networks.get(name), shapes[name], classes, device)
        except NetworkError as error:
            raise type(error)(f"job {name!r}: {error}") from error.__cause__


def _try(job: Job, plan: JobPlan, given: nn.Module | None, shape: Shape, classes: int, device: str) -> None:
    with torch.random.fork_rng(devices=[device] if device == "cuda" else []):
        network = ready(given, job.network, shape, classes, trains=job.trains)
        _try_saving(network)
        network = network.to(device)
        images = _noise(network, shape)
        with warnings.catch_warnings(), undisturbed(network, images.device):
            warnings.simplefilter("ignore")  # they come again in training
            if not job.trains:
                with torch.no_grad():
                    run_once(network, images)
                return
            network.train()
            _try_training(network, images)
            taps = [Tap.parse(tap) for terms in plan.terms.values() for _, _, read in terms for tap in read]
            for tap in dict.fromkeys(taps):
                _try_tap(network, tap, images)
            _doubt_gradients(network, dict.fromkeys(taps), images)


def _noise(network: nn.Module, shape: Sequence[int]) -> Tensor:
    images = example_images(network, (2, *shape))
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)


def _try_saving(network: nn.Module) -> None:
    """Save the network and load it into a copy whose weights are zero.

    Raises:
        NetworkError: the copy does not hold the same weights.
    """
    whose = type(network).__name__
    for place in unregistered(network):
        _log.warning(
            f"{whose}: {place!r} holds weights where PyTorch does not find them, so they are neither trained nor saved. "
            "Keep layers in an nn.ModuleList or nn.ModuleDict, and tensors in an nn.Parameter."
        )
    try:
        state = network.state_dict()
    except Exception as error:
        raise NetworkError(f"{whose} cannot be saved: its state_dict raises {type(error).__name__}: {error}") from error
    content, lost = as_bytes(state)
    for name in lost:
        _log.warning(f"{type(network).__name__}: {name!r} will not be saved: {left_out(state[name])}")
    try:
        copy = copied(network)
    except NetworkError:  # built by name, it never needs to be copied
        return
    with torch.no_grad():
        for tensor in (*copy.parameters(), *copy.buffers()):
            tensor.zero_()
    try:
        tensors = safetensors.torch.load(content)
        if tensors or any(True for _ in network.parameters()):  # frozen TorchScript keeps its weights elsewhere
            tensors, _ = find_state(tensors, "", "the saved state")
        load_state(copy, tensors, read_beside(content), "the saved state")
    except Exception as error:
        raise NetworkError(f"{whose} cannot be loaded after it was saved: {type(error).__name__}: {error}") from error
    again = {**dict(copy.named_parameters()), **copy.state_dict()}
    for name, tensor in {**dict(network.named_parameters()), **state}.items():
        other = again.get(name)
        if name not in lost and isinstance(tensor, Tensor) and not _same(tensor, other):
            raise NetworkError(
                f"{type(network).__name__} loses {name!r} when it is saved and loaded again: its state_dict leaves it out, "
                "or its load_state_dict does not read it. Fix these methods, or register the tensor as a parameter or a "
                "buffer."
            )


def _same(one: Tensor, other: object) -> bool:
    """Whether both are equal, NaN included."""
    if not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    if one.is_quantized or not one.is_floating_point():
        return torch.equal(one.detach(), other.detach())
    return torch.allclose(one.detach(), other.detach(), rtol=0, atol=0, equal_nan=True)


def _try_training(network: nn.Module, images: Tensor) -> None:
    """Run the network as training does.

    Raises:
        NetworkError: it cannot, or its logits have no gradient.
    """
    logits = logits_in(run_once(network, images.clone()))
    if logits.ndim == 2 and logits.shape[1] > 1 and bool((logits >= 0).all()) and _sums_to_one(logits):
        _log.warning(
            f"{type(network).__name__} gives probabilities, as from a softmax, and the losses take the softmax of them once "
            "more, which leaves little to learn from. Let its forward return what goes into the softmax."
        )
    if logits.requires_grad or not any(p.requires_grad for p in network.parameters()):
        return
    raise NetworkError(
        f"{type(network).__name__} cannot learn: no gradient leads from its logits to its weights in training mode. It "
        "most likely detaches its output, or runs under no_grad or in inference mode."
    )


def _sums_to_one(shares: Tensor) -> bool:
    """Whether each row does, up to the rounding of half precision."""
    return bool(((shares.sum(1) - 1).abs() < 2e-3).all())


def _try_tap(network: nn.Module, tap: Tap, images: Tensor) -> None:
    """Read one of the student's maps as training does.

    Raises:
        TapError: the map has no gradient, though it depends on weights that train.
    """
    found = _read(network, tap, images)
    if found.requires_grad or not _depends(network, tap, images):
        return
    raise TapError(
        f"Tap '{tap}' of {type(network).__name__} has no gradient in training mode, though weights before it should learn "
        "from it. The module most likely runs inside torch.utils.checkpoint(..., use_reentrant=True), under no_grad, or "
        "detaches its map. Use checkpoint(..., use_reentrant=False), or tap a module outside."
    )


def _doubt_gradients(network: nn.Module, taps: Iterable[Tap], images: Tensor) -> None:
    """Warn of weights that are to be trained, but that nothing the training reads depends on.

    Raises:
        NetworkError: the gradient cannot be computed.
    """
    learned = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for parameter in learned.values():
        parameter.grad = None  # of the user's own training
    left = list(learned)
    for output in _outputs(network, taps, images):
        try:
            if output.requires_grad:
                torch.autograd.backward(output.sum())
        except Exception as error:
            raise NetworkError(
                f"{type(network).__name__} cannot learn: its gradient raises {type(error).__name__}: {error}"
            ) from error
        left = [name for name, parameter in learned.items() if parameter.grad is None]
        if not left:
            return
    count, of = (sum(learned[name].numel() for name in names) for names in (left, learned))
    more = f" and {len(left) - 1} more" if len(left) > 1 else ""
    _log.warning(
        f"{type(network).__name__}: no gradient reaches {count:,} of its {of:,} parameters in training mode, so "
        f"{left[0]!r}{more} will not learn. The network most likely detaches a map, runs under no_grad, or does not use "
        "them. If that is meant, freeze them with requires_grad_(False)."
    )


def _outputs(network: nn.Module, taps: Iterable[Tap], images: Tensor) -> Iterator[Tensor]:
    """What training may read: the logits, then each tap's map, by a forward of its own each."""
    yield logits_in(run_once(network, images.clone()))
    for tap in taps:
        yield _read(network, tap, images)


def _read(network: nn.Module, tap: Tap, images: Tensor) -> Tensor:
    reading = run_once(Tapped(network, [tap], until="taps"), images.clone())
    found: Tensor = reading[tap]
    return found


def _depends(network: nn.Module, tap: Tap, images: Tensor) -> bool:
    """Whether a map changes with the weights that train, found by changing them; rarely needed."""
    other = copied(network).eval()
    with torch.no_grad():
        before = _read(other, tap, images)
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
        return not torch.equal(before, _read(other, tap, images))
