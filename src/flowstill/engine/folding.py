"""BatchNorm folded into the convolution before it, which makes reading a network a quarter faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from flowstill.features.copying import copied
from flowstill.features.modules import Shape, is_compiled
from flowstill.features.recorder import Recorder
from flowstill.features.taps import Reading, Tap, Tapped

Until = Literal["logits", "taps"]


class FoldedNetwork:
    """A network in eval mode and its folded twin, made when first needed. The network is not changed."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._twin: tuple[nn.Module, frozenset[Tap]] | None = None

    def reader(self, taps: Iterable[Tap], shape: Shape, until: Until = "logits") -> nn.Module:
        """A network with the same maps at ``taps`` and the same logits up to rounding, and fewer layers.

        It is the network itself if nothing can be folded, if a tap lies between layers that were folded, or if the twin
        does not agree with it on images of noise.

        Args:
            taps: the taps that will be read.
            shape: of the images, (C, H, W).
            until: as in ``Tapped``.

        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> FoldedNetwork(network).reader([Tap("2")], (3, 8, 8))[1]
        Identity()
        """
        taps, network = list(taps), self.network
        like = next((p for p in network.parameters() if p.is_floating_point()), None)
        if like is None or like.is_meta or is_compiled(network) or not all(map(_still, network.modules())):
            return network
        devices = [like.device] if like.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            if self._twin is None:
                self._twin = _folded(network, _noise(2, shape, like, seed=0))
            twin, hidden = self._twin
            if twin is network or hidden & set(taps):
                return network
            # More images, and not the ones that the twin was made with: a network that remembers those must not pass.
            noise = _noise(16, shape, like, seed=1)
            expected, found = (Tapped(one, taps, until=until)(noise) for one in (network, twin))
            return twin if _agree(found, expected) else network


def _still(module: nn.Module) -> bool:
    """Whether reading a module does not change it, and its hooks can be trusted."""
    return not module.training and not isinstance(module, torch.jit.ScriptModule)


def _noise(count: int, shape: Shape, like: Tensor, seed: int) -> Tensor:
    """The same at every call, of the network's type and on its device."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)).to(like)


def _folded(network: nn.Module, images: Tensor) -> tuple[nn.Module, frozenset[Tap]]:
    """The twin, and the taps that it lacks; the network and no taps if there is nothing to fold."""
    try:
        pairs = _pairs(network, images)
        twin = copied(network) if pairs else network
    except Exception:  # a network that cannot be copied, or whose head takes no such images, can still be read
        return network, frozenset()
    for pair in pairs:
        _fold(twin, pair)
    return twin, frozenset(tap for pair in pairs for tap in (Tap(pair.conv), Tap(pair.norm, "input")))


@dataclass(frozen=True)
class _Pair:
    """The paths of a convolution and of the BatchNorm that takes its output."""

    conv: str
    norm: str


def _pairs(network: nn.Module, images: Tensor) -> list[_Pair]:
    """The convolutions whose output goes into a BatchNorm and into no other module, seen in one forward."""
    with Recorder(dict(network.named_modules())) as recorder:
        network(images)
    modules, calls = recorder.modules, recorder.calls
    made: dict[int, tuple[str, int]] = {}  # a convolution's output by identity: the convolution, the output's version
    taken: Counter[int] = Counter()
    fed: list[tuple[str, str, int]] = []  # convolution, BatchNorm, identity of the map between them
    for event in recorder.events:
        module = modules[event.path]
        if event.at == "input" and next(module.children(), None) is None:
            for tensor, version in zip(event.tensors, event.versions, strict=True):
                if id(tensor) in made:
                    taken[id(tensor)] += 1
                    if type(module) is nn.BatchNorm2d and version == made[id(tensor)][1]:
                        fed.append((made[id(tensor)][0], event.path, id(tensor)))
        elif event.at == "output" and type(module) is nn.Conv2d and len(event.tensors) == 1:
            made[id(event.tensors[0])] = event.path, event.versions[0]
    return [
        _Pair(conv, norm)
        for conv, norm, between in fed
        if taken[between] == calls[conv] == calls[norm] == 1 and _plain(modules[conv]) and _plain(modules[norm])
    ]


def _plain(module: nn.Module) -> bool:
    """Whether only a module's class and its numbers decide its output, and its statistics are fixed."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    fixed = not isinstance(module, nn.BatchNorm2d) or module.running_var is not None
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
    """Whether both agree up to rounding; use of a convolution's output outside modules would show here."""
    pairs = [(found.maps[tap], maps) for tap, maps in expected.maps.items()]
    if expected.logits is not None and found.logits is not None:
        pairs.append((found.logits, expected.logits))
    for one, other in pairs:
        off = (one - other).float().norm()
        if not off <= torch.finfo(other.dtype).eps ** 0.5 * other.float().norm():
            return False
    return True
