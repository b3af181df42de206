"""The FSP matrix of two feature maps, made to cost little more than reading them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowstill.errors import ShapeError
from flowstill.transfer.knowledge import without_autocast

IN_CACHE = 2**21  # bytes of widened maps, which a core still holds when it multiplies them


def fsp_matrix(front: Tensor, back: Tensor) -> Tensor:
    """Flow between two feature maps, Eq. 1 of Yim et al. (2017).

    G[b, i, j] = 1/(h w) * sum_st front[b, i, s, t] * back[b, j, s, t]

    Of two maps of different size the larger is max-pooled to the smaller's height h and width w; where the ratio is
    not whole, as from 15 to 7, by adaptive max-pooling, which the paper does not need. Half precision is read as it
    is and summed in float32, also under autocast; memory layouts are taken as they come.

    Differentiable any number of times in reverse mode; not in forward mode.

    Args:
        front: (N, m, H, W), the map that comes first in the network.
        back: (N, n, h, w).

    Returns:
        (N, m, n), float32, or float64 if either map is.

    Raises:
        ShapeError: not two (N, C, H, W) maps of one batch, or neither is the larger.

    >>> fsp_matrix(torch.ones(1, 2, 4, 4), 3 * torch.ones(1, 1, 4, 4))
    tensor([[[3.],
             [3.]]])
    """
    size = _common_size(front, back)
    front, back = _max_pooled(front, size), _max_pooled(back, size)
    with without_autocast(front.device):
        matrix: Tensor = _Products.apply(front, back)
    return matrix


class _Products(torch.autograd.Function):
    """The products of two maps of one size. Keeps the maps as they are, where autograd would keep copies in float32, and
    gives each its gradient in its own type and memory layout, where autograd would copy it twice on the way back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(front: Tensor, back: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(front.dtype, back.dtype), torch.float32)
        count = _at_once(front, back, dtype)
        parts = [
            some.to(dtype).flatten(2) @ others.to(dtype).flatten(2).mT  # views, channels-last or not
            for some, others in zip(torch.split(front, count), torch.split(back, count), strict=True)
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
    """How many images are multiplied at once: all, or where one core must widen them first as many as its cache holds.

    Not if the matrices are the larger: putting them together would cost more.
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
    """Of ``maps`` (N, C, h, w), from that of its products with ``others`` (N, n, h, w), (N, C, n)."""
    both = torch.bfloat16  # whose range is that of float32, and whose products are summed in it
    narrow = maps.dtype == others.dtype == both and not _outweighed(maps, others)  # what is small is cast
    dtype = both if narrow else torch.promote_types(grad.dtype, others.dtype)
    grad, others = grad.to(dtype), others.to(dtype).flatten(2)
    product = partial(torch.baddbmm, grad.new_zeros(()), beta=0, alpha=1 / max(1, maps.shape[2:].numel()))
    last = maps.is_contiguous(memory_format=torch.channels_last)
    found: Tensor = product(others.mT, grad.mT).mT if last else product(grad, others)
    return found.to(maps.dtype).reshape(maps.shape)


def _common_size(front: Tensor, back: Tensor) -> tuple[int, int]:
    """Height and width of the smaller map. Raises: ShapeError."""
    shapes = f"front {tuple(front.shape)} and back {tuple(back.shape)}"
    if front.ndim != 4 or back.ndim != 4:
        raise ShapeError(f"An FSP matrix needs two maps (N, channels, height, width), not {shapes}.")
    if front.shape[0] != back.shape[0]:
        raise ShapeError(f"An FSP matrix needs two maps of the same images; {shapes} differ in number.")
    (high, wide), (height, width) = front.shape[2:], back.shape[2:]
    if (high - height) * (wide - width) < 0:
        raise ShapeError(f"An FSP matrix needs one map to be the larger; of {shapes} one is higher, the other wider.")
    return min(high, height), min(wide, width)


def _max_pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pool (N, C, H, W) to (N, C, *size); maps of that size come back as they are."""
    (high, wide), (height, width) = maps.shape[2:], size
    if (high, wide) == size:
        return maps
    if maps.device.type == "cpu" and not maps.requires_grad:
        # On CPUs max_pool2d is vectorised for channels-last alone: half the time, the copy included. Where a gradient
        # comes back the copy gains nothing: that gradient is channels-last, and the network's others are not.
        maps = maps.contiguous(memory_format=torch.channels_last)
    if high % height == 0 and wide % width == 0:
        return F.max_pool2d(maps, (high // height, wide // width))
    return F.adaptive_max_pool2d(maps, size)
