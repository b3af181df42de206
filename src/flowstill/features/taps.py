"""Named points in a network where feature maps are read, without editing the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from flowstill.errors import TapError, did_you_mean
from flowstill.features.modules import logits_in, module_at, parallel_wrappers, tensors_in, unwrapped
from flowstill.features.refusals import overwritten, refuse_scripted, unreached


@dataclass(frozen=True, order=True)
class Tap:
    """A named point in a network: the output, or first input, of the module at ``path`` (``""`` is the whole network).

    Attributes:
        path: the module's name in the network.
        at: ``output`` or ``input``.

    >>> str(Tap("layer1.0")), str(Tap("fc", "input"))
    ('layer1.0', 'fc:input')
    """

    path: str
    at: Literal["output", "input"] = "output"

    @classmethod
    def parse(cls, text: str | Tap) -> Tap:
        """Read ``"layer1.0"`` or ``"fc:input"``.

        Raises:
            TapError: something else stands after the colon.
        """
        if isinstance(text, Tap):
            return text
        path, _, at = text.partition(":")
        if at not in ("", "output", "input"):
            raise TapError(f"Tap {text!r}: expected 'output' or 'input' after the colon. Received: {at!r}.")
        return cls(path, "input" if at == "input" else "output")

    def __str__(self) -> str:
        return self.path if self.at == "output" else f"{self.path}:input"


@dataclass(frozen=True)
class Flow:
    """Two taps of one section, between which the flow of the solution is measured.

    Attributes:
        front: the tap nearer to the image.
        back: the tap nearer to the logits.
    """

    front: Tap
    back: Tap


@dataclass(frozen=True)
class Reading:
    """The result of one forward: the maps at the taps, and the logits unless the forward stopped before them.

    Attributes:
        images: the input, (B, C, H, W).
        logits: (B, classes), or None.
        maps: tap -> (B, D, H, W).
    """

    images: Tensor
    logits: Tensor | None = None
    maps: dict[Tap, Tensor] = field(default_factory=dict)

    def __getitem__(self, tap: Tap | str) -> Tensor:
        """The map at ``tap``.

        Raises:
            TapError: it was not read.
        """
        tap = Tap.parse(tap)
        if tap not in self.maps:
            raise TapError(f"Tap '{tap}' was not read. {did_you_mean(str(tap), map(str, self.maps), 3)}".rstrip())
        return self.maps[tap]


# Lets DDP with find_unused_parameters look inside.
torch.export.register_dataclass(Reading)


class Tapped(nn.Module):
    """A network whose maps are read by hooks as it runs; the network itself is never edited.

    The maps are the tensors themselves, with their graph and in the forward's dtype. In inference mode and under
    torch.compile they are copies, since overwriting them in place would go unnoticed there.

    Hooks live for one forward, or as long as ``with tapped:`` lasts. Several Tapped may share one network. To train in
    several processes, wrap this in DDP; to compile, compile this: ``torch.compile(Tapped(...))``, one graph from torch
    2.15 on. A network that is already wrapped or compiled is read by its original module names.

    Args:
        taps: where to read, ``"layer1.0"`` or ``"fc:input"``. From a module that returns several tensors, the first of
            shape (B, D, H, W) is read.
        until: ``"logits"`` runs the whole forward; ``"taps"`` stops once all taps are read (without taps, nothing runs);
            a tap stops right there, at its first call. After a stop the logits are None.

    Raises:
        TapError: a path names no module. In the forward: a tap was not reached, was reached more than once or returned
            no map, a map was overwritten after it was read, or a stop would keep DDP from reducing gradients.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    >>> reading = Tapped(network, ["1"], until="taps")(torch.zeros(2, 3, 8, 8))
    >>> reading["1"].shape, reading.logits
    (torch.Size([2, 8, 6, 6]), None)
    """

    def __init__(self, network: nn.Module, taps: Iterable[Tap | str] = (), until: Tap | str = "logits") -> None:
        super().__init__()
        self.network = network
        self.taps = tuple(dict.fromkeys(map(Tap.parse, [taps] if isinstance(taps, (str, Tap)) else taps)))
        self.until = until if until in ("logits", "taps") else Tap.parse(until)
        stop = {self.until} if isinstance(self.until, Tap) else set()
        self._recorder = _Recorder(self.taps, self.until)
        # torch.compile needs the same objects at each forward.
        self._hooks = tuple(_Hook(tap, self._recorder) for tap in dict.fromkeys((*self.taps, *stop)))
        self._handles: list[RemovableHandle] = []
        self._depth = 0
        self._bare = (unwrapped(network),)  # in a tuple, so that it is not registered twice
        self._parallel = parallel_wrappers(network)
        for hook in self._hooks:
            refuse_scripted(network, hook.tap)

    def forward(self, images: Tensor) -> Reading:
        """Read the taps for images (B, C, H, W)."""
        if self.until == "taps" and not self.taps:
            return Reading(images)
        if self._depth:
            return self._read(images)
        # Not `with self`, which torch.compile cannot trace.
        self._install()
        try:
            return self._read(images)
        finally:
            self._remove()

    def __enter__(self) -> Self:
        if not self._depth:
            self._install()
        self._depth += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._remove()

    def _install(self) -> None:
        (network,) = self._bare
        try:
            modules = [network.get_submodule(hook.tap.path) for hook in self._hooks]
        except AttributeError:
            modules = [module_at(network, hook.tap.path) for hook in self._hooks]  # raises, with the nearest names
        self._handles = list(map(_Hook.install, self._hooks, modules))  # torch 2.9 cannot trace zip(..., strict=True)

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _read(self, images: Tensor) -> Reading:
        recorder, logits = self._recorder, None
        reduces = any(wrapper.require_backward_grad_sync for wrapper in self._parallel)
        if reduces and self.until != "logits" and torch.is_grad_enabled():
            # DDP prepares its reducer after the forward; a stop inside would silently skip that.
            raise TapError(
                "Tapped(DistributedDataParallel(network)) cannot stop early if gradients are needed: they would not be "
                "reduced. Wrap the other way round, DistributedDataParallel(Tapped(network)), or read under no_grad."
            )
        recorder.start()
        try:
            logits = logits_in(self.network(images))
        except _Stop:
            if not recorder.stopped:
                raise
        finally:
            maps = recorder.finish()
        self._check(maps)
        return Reading(images, None if recorder.stopped else logits, {tap: maps[tap] for tap in self.taps})

    def _check(self, maps: dict[Tap, Tensor]) -> None:
        recorder = self._recorder
        for hook in self._hooks:
            if hook.tap in recorder.repeated:
                raise TapError(
                    f"Tap '{hook.tap}' is ambiguous: its module is called more than once in a forward. "
                    "Tap one that is called once, such as the block around it."
                )
            if hook.tap not in maps and (hook.tap in self.taps or not recorder.stopped):
                raise TapError(unreached(self.network, hook.tap, self.until if recorder.stopped else None))
        for tap, version in recorder.versions.items():
            if maps[tap]._version != version:
                raise TapError(overwritten(self.network, tap))


class _Stop(Exception):
    """Ends a forward that has given all its maps; the network's own ``with`` blocks and hooks see it pass."""


class _Recorder:
    """The maps of the forward that is running, shared by the hooks of one Tapped."""

    def __init__(self, taps: tuple[Tap, ...], until: Tap | str) -> None:
        self.taps, self.until = taps, until
        self.start()
        self.running = False

    def start(self) -> None:
        self.running, self.stopped = True, False
        self.maps: dict[Tap, Tensor] = {}
        self.versions: dict[Tap, int] = {}
        self.repeated: set[Tap] = set()

    def finish(self) -> dict[Tap, Tensor]:
        """Hand over the maps."""
        self.running, maps, self.maps = False, self.maps, {}
        return maps

    def record(self, tap: Tap, value: object) -> None:
        if not self.running:  # the network was called from elsewhere
            return
        if tap in self.maps:
            self.repeated.add(tap)
            return
        found = value if isinstance(value, Tensor) else next((t for t in tensors_in(value) if t.ndim == 4), None)
        if found is None:
            raise TapError(
                f"Tap '{tap}': expected a tensor of shape (B, D, H, W). Received: {type(value).__name__} without one."
            )
        if torch.compiler.is_compiling() or found.is_inference():  # no version counter to look at later
            self.maps[tap] = found.clone()
        else:
            self.maps[tap], self.versions[tap] = found, found._version
        if tap == self.until or (self.until == "taps" and len(self.maps) == len(self.taps)):
            self.running, self.stopped = False, True
            raise _Stop


class _Hook:
    """A forward hook or pre-hook that passes what it sees to the recorder."""

    def __init__(self, tap: Tap, recorder: _Recorder) -> None:
        self.tap, self.recorder = tap, recorder

    def install(self, module: nn.Module) -> RemovableHandle:
        if self.tap.at == "input":
            return module.register_forward_pre_hook(self, with_kwargs=True)
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple[object, ...], last: Any) -> None:
        """``last`` is the module's output, or its keyword arguments where inputs are read."""
        self.recorder.record(self.tap, next(iter((*args, *last.values())), None) if self.tap.at == "input" else last)
