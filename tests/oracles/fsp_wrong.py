"""Wrong variants of FSP, found in public code or likely, which the checks must refuse. Written without the package."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from oracles import fsp as oracle


def pooled_by(pool):
    def matrix(front, back):
        height, width = smaller(front, back)
        front, back = pool(front, (height, width)), pool(back, (height, width))
        return torch.einsum("bmhw,bnhw->bmn", front, back) / (height * width)

    return matrix


def smaller(front, back):
    return min(front.shape[2], back.shape[2]), min(front.shape[3], back.shape[3])


right = pooled_by(F.adaptive_max_pool2d)


def every_so_many(maps, size):
    """The first value of each window."""
    return maps[:, :, :: maps.shape[2] // size[0], :: maps.shape[3] // size[1]][:, :, : size[0], : size[1]]


def not_divided(front, back):
    height, width = smaller(front, back)
    return right(front, back) * height * width


def divided_by_the_size_before_pooling(front, back):
    return not_divided(front, back) / max(front[0, 0].numel(), back[0, 0].numel())


def batch_mean(each):
    """A loss of each matrix difference, as the mean over the batch and the weighted sum over the sections."""

    def loss(student, teacher, alphas):
        return sum(a * each(t - s).mean() for s, t, a in zip(student, teacher, alphas, strict=True))

    return loss


def squared(difference):
    return difference.square().sum((1, 2))


def implementation(matrix=right, loss=None, weights=oracle.alphas):
    return SimpleNamespace(matrix=matrix, loss=loss or batch_mean(squared), weights=weights)


RIGHT = implementation()
WRONG = {
    "average_pooling": implementation(matrix=pooled_by(F.adaptive_avg_pool2d)),
    "no_division": implementation(matrix=not_divided),
    "unsquared": implementation(loss=batch_mean(lambda d: torch.linalg.matrix_norm(d))),
    "swapped": implementation(matrix=lambda front, back: right(back, front)),
    "strided": implementation(matrix=pooled_by(every_so_many)),
    "wrong_division": implementation(matrix=divided_by_the_size_before_pooling),
    "unsquared_columns": implementation(loss=batch_mean(lambda d: d.norm(dim=1).sum(1))),
    "spectral": implementation(loss=batch_mean(lambda d: torch.linalg.matrix_norm(d, ord=2).square())),
    "mean_of_entries": implementation(loss=batch_mean(lambda d: d.square().mean((1, 2)))),
    "sum_of_batch": implementation(loss=batch_mean(lambda d: d.square().sum())),
    "half": implementation(loss=batch_mean(lambda d: squared(d) / 2)),
    "equal_is_mean": implementation(
        weights=lambda name, s: oracle.alphas("element_mean" if name == "equal" else name, s)
    ),
}
# Which numbered checks see which of the four commonest faults; the comparison with the loops sees all faults.
SEEN_BY = {
    "average_pooling": (2, 3, 7, 8, 9),
    "no_division": (1, 2, 3, 4, 6, 7, 8, 9, 10),
    "unsquared": (5, 6, 9),
    "swapped": (1, 2, 3, 4, 7, 8, 10),
}
