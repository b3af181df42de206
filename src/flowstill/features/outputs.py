"""Where in a network's output the logits are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from flowstill.errors import NetworkError
from flowstill.features.tracing import example_images, run_once, undisturbed

Steps = tuple[Callable[[Any], Any], ...]  # from a network's output to a tensor in it


class LogitsOf:
    """A forward hook that picks the logits from everything that a network returns, as (B, classes).

    Args:
        evaluating: the way to them in eval mode.
        training: the way to them in training mode.
    """

    def __init__(self, evaluating: Steps, training: Steps) -> None:
        self.evaluating, self.training = evaluating, training

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Tensor:
        """The logits."""
        for step in self.training if module.training else self.evaluating:
            output = step(output)
        logits: Tensor = output.flatten(1)
        return logits

    def install(self, network: nn.Module) -> None:
        """Make the network return nothing else from now on."""
        nn.Module.register_forward_hook(network, self)  # TorchScript has no method of its own


def settle_logits(network: nn.Module, shape: Sequence[int], classes: int, *, trains: bool = True) -> None:
    """Make the network return its logits alone; they are found once, in its output for two images.

    They are the only tensor of shape (images, classes), or the one called ``logits``. Outputs beside them in training
    mode only (auxiliary heads) are told apart by the values of the logits in eval mode. A network that returns nothing
    of that shape is left unchanged.

    Args:
        network: changed in place. It may be on ``meta``, where tensors have no values to compare.
        shape: of an image, (C, H, W).
        classes: of the data.
        trains: whether it will run in training mode.

    Raises:
        NetworkError: it cannot run on such images, or several tensors may be the logits.
    """
    images = example_images(network, (2, *shape))
    if not images.is_meta:
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with undisturbed(network, images.device), torch.no_grad():
        output = run_once(network, images.clone())
        found = _candidates(output, classes)
        if not found:
            return
        if len(found) > 1:
            raise _ambiguous(network, found, "returns")
        way, text, logits = found[0]
        whole = in_training = isinstance(output, Tensor) and output.dim() == 2
        training = way
        if trains:
            _train_but_for_noise(network)
            output = run_once(network, images.clone())
            in_training = isinstance(output, Tensor) and output.dim() == 2
            others = _candidates(output, classes)
            training = _same_logits(network, others, text, logits)
    if not (whole and in_training):
        LogitsOf(way, training).install(network)


Found = tuple[Steps, str, Tensor]  # the way to a tensor, the same as text, and the tensor


def _places(value: Any, way: Steps = (), text: str = "") -> Iterator[Found]:
    """The tensors in a network's output, in order; looks into mappings, sequences and dataclasses."""
    parts: list[tuple[Callable[[Any], Any], str, Any]] = []
    if isinstance(value, Tensor):
        yield way, text, value
    elif isinstance(value, Mapping):
        parts = [(itemgetter(key), f"[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = [(attrgetter(name), f".{name}", part) for name, part in zip(value._fields, value, strict=True)]
    elif isinstance(value, (tuple, list)):
        parts = [(itemgetter(index), f"[{index}]", part) for index, part in enumerate(value)]
    elif is_dataclass(value):
        parts = [(attrgetter(f.name), f".{f.name}", getattr(value, f.name)) for f in fields(value)]
    elif isinstance(getattr(value, "logits", None), Tensor):
        parts = [(attrgetter("logits"), ".logits", value.logits)]
    for step, said, part in parts:
        yield from _places(part, (*way, step), text + said)


def _candidates(output: Any, classes: int) -> list[Found]:
    """The candidates for the logits, each tensor once; only the one named ``logits`` if there is one."""
    places = list({id(found[2]): found for found in reversed(list(_places(output)))}.values())[::-1]
    flat = [found for found in places if found[2].shape[1:] == (classes,) and len(found[2]) == 2]
    if not flat:  # from a convolutional head
        flat = [f for f in places if f[2].dim() == 4 and f[2].shape == (2, classes, 1, 1)]
    named = [found for found in flat if found[1].endswith((".logits", "['logits']"))]
    return named[:1] or flat


def _train_but_for_noise(network: nn.Module) -> None:
    """Training mode, except for layers whose values would change with it."""
    for module in network.modules():
        noisy = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        module.training = not noisy


def _same_logits(network: nn.Module, found: list[Found], text: str, logits: Tensor) -> Steps:
    """The way, in training mode, to the logits of eval mode.

    Raises:
        NetworkError: there are none, or they are ambiguous.
    """
    if not found:
        raise NetworkError(
            f"{type(network).__name__} returns logits of shape (images, {logits.shape[1]}) in eval mode, but none in "
            "training mode. Return them in both."
        )
    if len(found) == 1:
        return found[0][0]
    if not logits.is_meta:
        close = [f for f in found if torch.allclose(f[2].flatten(1), logits.flatten(1), rtol=1e-3, atol=1e-5)]
        if len(close) == 1:
            return close[0][0]
    alike = [f for f in found if f[1] == text]
    if alike or logits.is_meta:
        return (alike or found)[0][0]
    raise _ambiguous(network, found, "returns in training mode")


def _ambiguous(network: nn.Module, found: list[Found], returns: str) -> NetworkError:
    places = [text for _, text, _ in found]
    return NetworkError(
        f"{type(network).__name__} {returns} {len(places)} tensors of shape (images, {found[0][2].shape[1]}): "
        f"{', '.join(f'output{text}' for text in places)}. Which are the logits? Choose with a hook on the network: "
        f"network.register_forward_hook(lambda module, images, output: output{places[-1]}), or give them the key 'logits'."
    )
