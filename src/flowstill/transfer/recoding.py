"""Sparse recoding: a gradient's large entries are enlarged and its small ones dropped, by a threshold that learns.

Liu et al., "Knowledge Representing: Efficient, Sparse Representation of Prior Knowledge for Knowledge Distillation",
CVPR Workshops 2019, section 3.2: the penalty Phi, a function of the *gradient* g (Eq. 3-4), "enhances the high
gradients of dominant neurons, and filters the low gradients of inactive neurons".

What the paper leaves open, and what is done about it:

* Added to the loss, as in Eq. 10, Phi would by its own gradient (a second derivative of the loss) make large gradients
  *smaller*, contrary to everything the text says. ``recode`` does what the text says: it changes the gradient itself,
  to g + lambda sign(g) Phi_0(g) where |g| >= epsilon and 0 elsewhere. ``recode_soft`` drops nothing.
  ``double_backward`` is Eq. 10 to the letter, with the same lambda: ResNet-8 on 8x8 digits (learning rate 0.05)
  diverged with a strength of 1, did not learn with 0.1, and learned more slowly than without it with 0.01.
* lambda has no printed value, and Phi_0 = (|g| + g^2) / epsilon is of order 1 whatever the size of g. Written as lambda
  = strength * epsilon, the entries above the threshold become g (1 + strength (1 + |g|)): about twice g for 1.
* epsilon is "initialized with the mean value of parameters distribution". The mean of the weights may be negative, and
  even their mean magnitude lies above nearly every gradient, so the default is the mean magnitude of the first
  gradient. The alternative is ``mean_abs_w``, which the bound below then brings into the gradient's range.
* epsilon is "a learnable threshold", but Phi falls as epsilon grows, and is smallest where nothing passes. So each
  tensor's epsilon descends Phi / (number of entries) with its own learning rate, and stays below a quantile of |g|, so
  that a tenth of the entries always passes. It reaches that bound within some 200 updates and stays there: in effect
  it is a fixed filter of the smallest nine tenths. ``active_share`` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.schema import specification

Mode = Literal["recode", "recode_soft", "double_backward"]


def penalty(gradient: Tensor, epsilon: Tensor | float) -> Tensor:
    """Phi_0 of Eq. 4 for each entry: (|g| + g^2) / epsilon where |g| >= epsilon, else 0. Even; jumps by 1 + epsilon.

    >>> penalty(torch.tensor([0.4, 0.5, -1.0]), 0.5)
    tensor([0.0000, 1.5000, 4.0000])
    """
    return _dominant(gradient, epsilon) / epsilon


def _dominant(gradient: Tensor, epsilon: Tensor | float) -> Tensor:
    """epsilon Phi_0(g)."""
    magnitude = gradient.abs()
    return torch.where(magnitude >= epsilon, magnitude + gradient.square(), 0.0)


def recode(gradient: Tensor, epsilon: Tensor | float, strength: float = 1.0, soft: bool = False) -> Tensor:
    """1[|g| >= epsilon] (g + lambda sign(g) Phi_0(g)) with lambda = strength * epsilon, multiplied out.

    That is g (1 + strength (1 + |g|)) above the threshold, and 0 below it, or g if ``soft``. With an epsilon of 0 and a
    strength of 0 every bit is unchanged.

    >>> recode(torch.tensor([0.4, 0.5, -1.0]), 0.5)
    tensor([ 0.0000,  1.2500, -3.0000])
    """
    magnitude = gradient.abs()
    return torch.where(magnitude >= epsilon, gradient * (1 + strength * (1 + magnitude)), gradient if soft else 0.0)


@specification
class Recoding:
    """How a player's gradients are recoded: after the reduction over processes, before weight decay and momentum.

    Attributes:
        mode: ``recode`` enlarges entries above the threshold and drops those below. ``recode_soft`` leaves those below
            unchanged. ``double_backward`` adds the penalty to the loss, as printed in the paper; it takes a second
            backward pass through the first, on a single process.
        strength: the paper's lambda, divided by epsilon.
        initial: the first threshold of each tensor: the mean magnitude of its first gradient, ``mean_abs_g``, or of its
            weights, ``mean_abs_w``.
        fixed: one threshold for all tensors that does not learn; None for one per tensor that does.
        lr: learning rate of the thresholds. As epsilon = softplus(rho) with a small epsilon, a step multiplies it by
            about 1 + lr.
        quantile: the largest share of a tensor's entries that may lie below its threshold; None for no bound, with
            which the threshold grows until it drops everything.
    """

    mode: Mode = "recode"
    strength: Annotated[float, Field(ge=0)] = 1.0
    initial: Literal["mean_abs_g", "mean_abs_w"] = "mean_abs_g"
    fixed: Annotated[float, Field(ge=0)] | None = None
    lr: Annotated[float, Field(ge=0)] = 0.01
    quantile: Annotated[float, Field(gt=0, le=1)] | None = 0.9


class Recoder:
    """Applies a ``Recoding`` to the gradients of ``parameters``, with a threshold for each."""

    def __init__(self, recoding: Recoding, parameters: Sequence[nn.Parameter]) -> None:
        self.recoding = recoding
        self.parameters: list[nn.Parameter] = []
        self.rho: list[Tensor] = []  # epsilon = softplus(rho); -inf, an epsilon of 0, before it is set
        self._shares: tuple[Tensor | float, int] = (0.0, 0)  # of active entries: their sum, and of how many calls
        self.add(parameters)

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Recode the gradients of these too."""
        self.parameters += parameters
        self.rho += [torch.full((), -math.inf, dtype=_precision(p), device=p.device) for p in parameters]

    @property
    def thresholds(self) -> list[float]:
        """Each tensor's epsilon; 0 before its first gradient."""
        if self.recoding.fixed is not None:
            return [self.recoding.fixed] * len(self.rho)
        return [float(F.softplus(rho)) for rho in self.rho]

    @torch.no_grad()
    def __call__(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The recoded gradients, one for each parameter; each threshold then takes a step. None stays None.

        For ``double_backward`` the gradients must have a graph (``create_graph=True``).
        """
        plain = [None if g is None else g.detach() for g in gradients]
        epsilons = [0.0 if g is None else self._threshold(i, g) for i, g in enumerate(plain)]
        self._count(plain, epsilons)
        if self.recoding.mode == "double_backward":
            return self._penalised(gradients, epsilons)
        soft, strength = self.recoding.mode == "recode_soft", self.recoding.strength
        return [
            None if g is None else recode(g, epsilon, strength, soft)
            for g, epsilon in zip(plain, epsilons, strict=True)
        ]

    def active_share(self) -> float | None:
        """The mean share of entries that passed since the last look; None if there was no gradient. Starts over."""
        total, calls = self._shares
        self._shares = (0.0, 0)
        return float(total) / calls if calls else None

    def _count(self, gradients: Sequence[Tensor | None], epsilons: Sequence[Tensor | float]) -> None:
        """Note the share of all entries that reach their thresholds, zeros apart; nothing leaves the device."""
        found = [(g, epsilon) for g, epsilon in zip(gradients, epsilons, strict=True) if g is not None]
        if found:
            passed = torch.stack([_dominant(g, epsilon).count_nonzero() for g, epsilon in found]).sum()
            self._shares = (self._shares[0] + passed / sum(g.numel() for g, _ in found), self._shares[1] + 1)

    def _threshold(self, number: int, gradient: Tensor) -> Tensor | float:
        """The epsilon for this gradient. The stored one, for the next gradient, has descended the penalty by one step."""
        recoding = self.recoding
        if recoding.fixed is not None:
            return recoding.fixed
        rho, like = self.rho[number], gradient.to(self.rho[number].dtype)
        epsilon, magnitude = F.softplus(rho), like.abs()
        first = magnitude if recoding.initial == "mean_abs_g" else self.parameters[number].to(rho.dtype).abs()
        epsilon = torch.where(epsilon > 0, epsilon, first.mean())
        bound = torch.full_like(epsilon, math.inf)
        if recoding.quantile is not None:
            bound = magnitude.flatten().kthvalue(max(1, math.ceil(recoding.quantile * magnitude.numel()))).values
        epsilon = torch.minimum(epsilon, bound)
        # d Phi / d epsilon = -Phi / epsilon, and d epsilon / d rho = sigmoid(rho) = 1 - exp(-epsilon).
        slope = torch.where(epsilon > 0, -penalty(like, epsilon).mean() / epsilon, 0.0)
        rho = _inverse_softplus(epsilon) + recoding.lr * slope * torch.expm1(-epsilon)
        self.rho[number] = torch.minimum(rho, _inverse_softplus(bound))
        return epsilon.to(gradient.dtype)

    def _penalised(self, gradients: Sequence[Tensor | None], epsilons: Sequence[Tensor | float]) -> list[Tensor | None]:
        """The gradient of loss + sum lambda Phi(g), lambda = strength * epsilon, by differentiating g."""
        present = [number for number, gradient in enumerate(gradients) if gradient is not None]
        with torch.enable_grad():
            terms = [
                _dominant(g, epsilon).sum()
                for g, epsilon in zip(gradients, epsilons, strict=True)
                if g is not None and g.requires_grad
            ]
            if not terms:
                raise ValueError(
                    "double_backward differentiates the gradients; compute them with loss.backward(create_graph=True)."
                )
            total = self.recoding.strength * torch.stack(terms).sum()
        extra = torch.autograd.grad(total, [self.parameters[number] for number in present], allow_unused=True)
        penalised = [None if gradient is None else gradient.detach() for gradient in gradients]
        for number, addition in zip(present, extra, strict=True):
            gradient = penalised[number]
            penalised[number] = gradient if gradient is None or addition is None else gradient + addition
        return penalised

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next call depends on."""
        total, calls = self._shares
        return {"rho": [rho.clone() for rho in self.rho], "shares": (float(total), calls)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: it has a different number of parameters.
        """
        if len(state["rho"]) != len(self.rho):
            raise ValueError(
                f"Expected a state of {len(self.rho)} parameters. Received: {len(state['rho'])} thresholds."
            )
        self.rho = [saved.to(rho) for saved, rho in zip(state["rho"], self.rho, strict=True)]
        self._shares = state.get("shares", (0.0, 0))


class SparseRecoding(torch.optim.Optimizer):
    """Sparse recoding around any optimiser, for any network: each step recodes the gradients, then ``optimizer`` steps.

    The paper holds that the penalty helps wherever "the gradients distribution is not discriminative enough". Use it
    like the optimiser itself. The parameter groups are the wrapped optimiser's, so schedulers take either. Weight decay
    and momentum belong to the wrapped optimiser, so they come after.

    Args:
        optimizer: the optimiser to wrap.
        recoding: the fields of ``Recoding``.

    Raises:
        RecipeError: an unknown field, or a value that it does not allow.

    >>> network = nn.Linear(3, 2)
    >>> optimizer = SparseRecoding(torch.optim.SGD(network.parameters(), lr=0.1), strength=0.5)
    >>> network(torch.ones(1, 3)).sum().backward()
    >>> optimizer.step(); optimizer.zero_grad()
    """

    _step_supports_amp_scaling = False  # a GradScaler must unscale before the gradients are recoded

    def __init__(self, optimizer: torch.optim.Optimizer, **recoding: Any) -> None:
        # Not super().__init__: groups, state and hooks are the wrapped optimiser's, by __getattr__.
        self.optimizer = optimizer
        self.recoder = Recoder(Recoding(**recoding), [p for group in optimizer.param_groups for p in group["params"]])

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        # A scheduler may have set an instance attribute 'step', which would keep stepping the original: drop it.
        return {"optimizer": self.optimizer, "recoder": self.recoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def thresholds(self) -> list[float]:
        """Each parameter's epsilon, in the groups' order; 0 before its first gradient."""
        return self.recoder.thresholds

    def active_share(self) -> float | None:
        """The mean share of the gradients' entries that reached their thresholds since the last look; then starts over."""
        return self.recoder.active_share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Recode the gradients on the parameters, where the recoded ones stay, and step.

        Args:
            closure: computes the gradients and returns the loss. With ``double_backward`` it must call
                ``loss.backward(create_graph=True)``.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = self.recoder.parameters
        for parameter, gradient in zip(parameters, self.recoder([p.grad for p in parameters]), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the parameters' gradients."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, to the wrapped optimiser too."""
        self.optimizer.add_param_group(param_group)
        self.recoder.add(self.optimizer.param_groups[-1]["params"])

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimiser's state and the thresholds."""
        return {"optimizer": self.optimizer.state_dict(), "recoding": self.recoder.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.recoder.load_state_dict(state_dict["recoding"])


def _inverse_softplus(epsilon: Tensor) -> Tensor:
    """rho with softplus(rho) = epsilon; -inf for 0."""
    return epsilon + torch.log(-torch.expm1(-epsilon))


def _precision(parameter: Tensor) -> torch.dtype:
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32
