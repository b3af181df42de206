"""A player at work: its parameters, its optimiser, its step."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowstill.transfer.recoding import Recoder
from flowstill.transfer.stages import Optimizer, Player


class ActivePlayer:
    """A stage's player with a fresh optimiser.

    Args:
        player: the player in the recipe.
        parameters: the parameters that it moves, in order.
        student: the parameters of the student itself; the others belong to modules that a loss owns.
    """

    def __init__(
        self, player: Player, parameters: Sequence[nn.Parameter], student: Container[nn.Parameter] = ()
    ) -> None:
        self.player = player
        self.parameters = list(parameters)
        self.of_student = [parameter in student for parameter in self.parameters]
        self.optimizer = make_optimizer(player.optimizer, self.parameters)
        self.recoder = Recoder(player.recode, self.parameters) if player.recode else None
        self.lr = player.lr

    @property
    def second_order(self) -> bool:
        """Whether the gradients are themselves differentiated, and so need a graph."""
        return self.player.recode is not None and self.player.recode.mode == "double_backward"

    def take_gradients(self) -> list[Tensor | None]:
        """The parameters' gradients; afterwards the parameters have none."""
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return gradients

    def decayed(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients with the L2 and L1 terms added, for rules that look at them; None stays None."""
        decay = self.player.optimizer.weight_decay
        return [
            g if g is None or not self._decays(p) else g.add(p.detach(), alpha=decay)
            for p, g in zip(self.parameters, self._with_l1(gradients), strict=True)
        ]

    def _with_l1(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients with the L1 term added, which torch's optimisers do not have."""
        if not (l1 := self.player.optimizer.l1):
            return gradients
        return [
            g if g is None or not self._decays(p) else g.add(p.detach().sign(), alpha=l1)
            for p, g in zip(self.parameters, gradients, strict=True)
        ]

    def _decays(self, parameter: nn.Parameter) -> bool:
        return self.player.optimizer.decay == "all" or parameter.ndim > 1

    def step(self, gradients: Sequence[Tensor | None], lr: float) -> None:
        """Take one step. A parameter without gradient neither moves nor decays."""
        if self.recoder is not None:
            gradients = self.recoder(gradients)
        for parameter, gradient in zip(self.parameters, self._with_l1(gradients), strict=True):
            parameter.grad = _laid_out_as(parameter, gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from the parameters."""
        return {"optimizer": self.optimizer.state_dict(), "recoder": self.recoder and self.recoder.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        if self.optimizer.state_dict()["state"].keys() - state["optimizer"]["state"].keys():
            raise LookupError("the optimiser's state is incomplete")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recoder is not None:
            self.recoder.load_state_dict(state["recoder"])


def _laid_out_as(parameter: nn.Parameter, gradient: Tensor | None) -> Tensor | None:
    """The gradient in its parameter's memory layout, since the fused kernels ignore strides."""
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def make_optimizer(spec: Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The torch optimiser for ``spec``; its learning rate is set at each step."""
    # Not timm's param_groups_weight_decay: it takes one network, and a player's parameters come from several modules.
    weights = [p for p in parameters if spec.decay == "all" or p.ndim > 1]
    others = [p for p in parameters if spec.decay != "all" and p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if spec.name == "sgd":
        # The fused kernel walks over all parameters at once; on a small network the step's time is mostly that walk.
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)
        # It needs all momenta from the start, but a parameter's first update may come later; zeros are equivalent.
        for parameter in parameters if spec.momentum else ():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.0, momentum=spec.momentum)
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=0.0, fused=True)
