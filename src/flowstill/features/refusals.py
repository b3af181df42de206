"""Why a tap cannot be read, and what to tap instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from flowstill.errors import TapError
from flowstill.features.modules import inplace_beside, is_compiled, is_scripted, module_at, unwrapped

if TYPE_CHECKING:
    from flowstill.features.taps import Tap


def refuse_scripted(network: nn.Module, tap: Tap) -> None:
    """Check that hooks on the tap's module are called.

    Raises:
        TapError: there is no such module, or TorchScript runs it.
    """
    module, parts = module_at(network, tap.path), tap.path.split(".")
    around = [module_at(network, ".".join(parts[:count])) for count in range(len(parts))]
    if any(map(is_scripted, [*around, module])):
        raise TapError(
            f"Tap '{tap}' cannot be read: TorchScript calls no hooks on its modules. Give the Python network, or use "
            "knowledge that reads logits only, such as kd."
        )


def unreached(network: nn.Module, tap: Tap, stopped_at: object) -> str:
    """Why the tap has no map after a forward, which may have ``stopped_at`` another one."""
    said, module = f"Tap '{tap}' was not reached: ", module_at(network, tap.path)
    if stopped_at is not None:
        return said + f"the forward stopped at '{stopped_at}' before it. Leave it out, or stop later: until='{tap}'."
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        members = ", ".join(f"'{tap.path}.{name}'" for name, _ in module.named_children())
        return said + f"a {type(module).__name__} is never called itself. Tap one of its members: {members}."
    if is_compiled(network):
        return said + (
            "the network is compiled, and code compiled without taps ignores them. "
            "Compile it together with them: torch.compile(Tapped(network, ...))."
        )
    return said + f"{type(unwrapped(network)).__name__}'s forward does not call this module. Tap one that it calls."


def overwritten(network: nn.Module, tap: Tap) -> str:
    """What overwrote the map, and what to tap instead."""
    inplace = inplace_beside(network, tap.path, itself=tap.at == "input")
    by = f"most likely by {inplace!r}" if inplace else "by an operation such as x += y"
    instead = inplace or tap.path.rpartition(".")[0]
    return (
        f"Tap '{tap}': its map was overwritten in place after it was read, {by}. "
        f"Tap {repr(instead) if instead else 'a later module'} instead, or stop before that: until='{tap}'."
    )
