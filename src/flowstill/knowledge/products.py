"""Max-pooling and the products of two feature maps, at little more than the cost of reading them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.transfer.knowledge import without_autocast

IN_CACHE = 2**21  # bytes of widened maps that a core's cache still holds when it multiplies them


def mean_products(front: Tensor, back: Tensor) -> Tensor:
    """Each channel of one map times each of the other, averaged over the positions.

    Half precision is read as it comes and summed in float32, also under autocast. Any memory layout. Differentiable any
    number of times in reverse mode; not in forward mode.

    Args:
        front: (N, m, h, w).
        back: (N, n, h, w).

    Returns:
        (N, m, n), float32, or float64 if either map is.
    """
    with without_autocast(front.device):
        products: Tensor = _Products.apply(front, back)
    return products


class _Products(torch.autograd.Function):
    """``mean_products``. Saves the maps themselves, where autograd would save float32 copies, and returns each gradient in
    its map's type and memory layout, where autograd would copy it twice on the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(front: Tensor, back: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(front.dtype, back.dtype), torch.float32)
        count = _at_once(front, back, dtype)
        parts = [
            some_front.to(dtype).flatten(2) @ some_back.to(dtype).flatten(2).mT  # views, channels-last or not
            for some_front, some_back in zip(torch.split(front, count), torch.split(back, count), strict=True)
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).div_(front.shape[2:].numel())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        front, back = ctx.saved_tensors
        with without_autocast(front.device):
            return (
                _gradient(front, back, grad) if ctx.needs_input_grad[0] else None,
                _gradient(back, front, grad.mT) if ctx.needs_input_grad[1] else None,
            )


def _at_once(front: Tensor, back: Tensor, dtype: torch.dtype) -> int:
    """How many images to multiply at once: all, or as many as one core's cache holds if it must widen them first.

    All, too, if the matrices are larger than the maps: concatenating them would cost more.
    """
    widened = front.device.type == "cpu" and not front.dtype == back.dtype == dtype
    if not widened or torch.get_num_threads() > 1 or _outweighed(front, back):
        return max(1, len(front))
    return max(1, IN_CACHE // max(1, dtype.itemsize * (front.shape[1:].numel() + back.shape[1:].numel())))


def _outweighed(maps: Tensor, others: Tensor) -> bool:
    """Whether two maps of one size, (N, m, h, w) and (N, n, h, w), are smaller than their N matrices of m x n."""
    m, n, positions = maps.shape[1], others.shape[1], maps.shape[2:].numel()
    return m * n > positions * (m + n)


def _gradient(maps: Tensor, others: Tensor, grad: Tensor) -> Tensor:
    """The gradient for ``maps`` (N, C, h, w), given that for its products with ``others`` (N, n, h, w): (N, C, n)."""
    # bfloat16 has float32's range, and its products are summed in float32. The smaller side is cast.
    narrow = maps.dtype == others.dtype == torch.bfloat16 and not _outweighed(maps, others)
    dtype = torch.bfloat16 if narrow else torch.promote_types(grad.dtype, others.dtype)
    grad, others = grad.to(dtype), others.to(dtype).flatten(2)
    product = partial(torch.baddbmm, grad.new_zeros(()), beta=0, alpha=1 / max(1, maps.shape[2:].numel()))
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    gradient: Tensor = product(others.mT, grad.mT).mT if channels_last else product(grad, others)
    return gradient.to(maps.dtype).reshape(maps.shape)


def max_pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pool (N, C, H, W) to (N, C, *size); maps of that size are returned unchanged."""
    (high, wide), (height, width) = maps.shape[2:], size
    if (high, wide) == size:
        return maps
    if maps.device.type == "cpu" and not maps.requires_grad:
        # On CPUs max_pool2d is vectorised only for channels-last: half the time, copy included. With a gradient the copy
        # gains nothing, since that gradient is channels-last and the network's others are not.
        maps = maps.contiguous(memory_format=torch.channels_last)
    if high % height == 0 and wide % width == 0:
        return F.max_pool2d(maps, (high // height, wide // width))
    return F.adaptive_max_pool2d(maps, size)
