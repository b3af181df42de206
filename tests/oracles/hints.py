"""FitNet hints from the papers' formulas, by scalar loops in float64."""

from oracles.baselines import same_size


def regressed(maps, weight, bias):
    """A 1x1 convolution of (C, H, W): weight rows (D, C), bias (D)."""
    return [
        [
            [bias[d] + sum(row[c] * maps[c][y][x] for c in range(len(maps))) for x in range(len(maps[0][0]))]
            for y in range(len(maps[0]))
        ]
        for d, row in enumerate(weight)
    ]


def hint(student, teacher, weight=None, bias=None, summed=True):
    """(B, C, H, W) and (B, D, h, w): squared distances, over an image's entries by sum or mean, mean over the batch."""
    total = 0.0
    for guided, hinted in zip(student, teacher, strict=True):
        guided, hinted = same_size(guided, hinted)
        if weight is not None:
            guided = regressed(guided, weight, bias)
        squares = [
            (a - b) ** 2
            for guided_map, hint_map in zip(guided, hinted, strict=True)
            for one, other in zip(guided_map, hint_map, strict=True)
            for a, b in zip(one, other, strict=True)
        ]
        total += sum(squares) / (1 if summed else len(squares))
    return total / len(student)
