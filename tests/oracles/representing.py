"""Knowledge representing from the formulas of Liu et al. (2019), by scalar loops in float64."""

import bisect
import math


def phi0(g, epsilon):
    """Eq. 4."""
    return (abs(g) + g * g) / epsilon if abs(g) >= epsilon else 0.0


def phi(gradient, epsilon):
    """Eq. 3."""
    return sum(phi0(g, epsilon) for g in gradient)


def recode(gradient, epsilon, strength, soft):
    """g + lambda sign(g) Phi_0(g), lambda = strength * epsilon, above the threshold."""
    out = []
    for g in gradient:
        if abs(g) >= epsilon:
            out.append(g + strength * epsilon * (1 if g > 0 else -1 if g < 0 else 0) * phi0(g, epsilon))
        else:
            out.append(g if soft else 0.0)
    return out


def active_share(gradients, epsilons):
    """Of the entries of all tensors, the share that recoding enlarges."""
    entries = [(g, epsilon) for gradient, epsilon in zip(gradients, epsilons, strict=True) for g in gradient]
    return sum(1 for g, epsilon in entries if g != 0 and abs(g) >= epsilon) / len(entries)


def mean_magnitude(values):
    return sum(abs(v) for v in values) / len(values)


def bound(gradient, quantile):
    """The smallest magnitude that at least a share ``quantile`` of the entries does not exceed."""
    magnitudes = sorted(abs(g) for g in gradient)
    for magnitude in magnitudes:
        if bisect.bisect_right(magnitudes, magnitude) >= quantile * len(magnitudes):
            return magnitude
    return magnitudes[-1]


def threshold_after(gradient, epsilon, lr, quantile):
    """The epsilon used for this gradient, and the one kept: one step down Phi / numel in rho, epsilon = log(1 + e^rho)."""
    top = bound(gradient, quantile) if quantile is not None else math.inf
    used = min(epsilon, top)
    rho = math.log(math.exp(used) - 1)
    by_epsilon = sum(-(abs(g) + g * g) / used**2 for g in gradient if abs(g) >= used) / len(gradient)
    by_rho = by_epsilon * math.exp(rho) / (1 + math.exp(rho))
    return used, min(math.log(1 + math.exp(rho - lr * by_rho)), top)


def recoded(gradient, epsilon, strength, lr, quantile):
    """A gradient recoded by its own threshold, and the threshold to keep; 0 where there is none yet."""
    epsilon = epsilon or mean_magnitude(gradient)
    if min(epsilon, bound(gradient, quantile)) == 0:  # most of it is zeros: everything passes
        return [g + strength * (1 if g > 0 else -1 if g < 0 else 0) * (abs(g) + g * g) for g in gradient], 0.0
    used, kept = threshold_after(gradient, epsilon, lr, quantile)
    return recode(gradient, used, strength, soft=False), kept


def groups(layers, size, at_most):
    """Lists of layer numbers: runs of ``size``; then the two neighbours that are smallest together are merged."""
    found = []
    for layer in range(layers):
        if not found or len(found[-1]) == size:
            found.append([])
        found[-1].append(layer)
    while len(found) > at_most:
        best = None
        for i in range(len(found) - 1):
            if best is None or len(found[i]) + len(found[i + 1]) < len(found[best]) + len(found[best + 1]):
                best = i
        found[best] += found.pop(best + 1)
    return found


def deviation(values):
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def convolution(maps, weight, stride, padding):
    """(C, H, W) with (D, C, k, k) -> (D, h, w)."""
    high, wide, k = len(maps[0]), len(maps[0][0]), len(weight[0][0])
    rows = range((high + 2 * padding - k) // stride + 1)
    columns = range((wide + 2 * padding - k) // stride + 1)

    def at(kernel, y, x):
        total = 0.0
        for c, channel in enumerate(maps):
            for i in range(k):
                for j in range(k):
                    row, column = y * stride + i - padding, x * stride + j - padding
                    if 0 <= row < high and 0 <= column < wide:
                        total += kernel[c][i][j] * channel[row][column]
        return total

    return [[[at(kernel, y, x) for x in columns] for y in rows] for kernel in weight]


def normalised(maps, mean, variance, scale, shift, eps=1e-5):
    return [
        [[(v - m) / math.sqrt(var + eps) * a + b for v in row] for row in channel]
        for channel, m, var, a, b in zip(maps, mean, variance, scale, shift, strict=True)
    ]


def rectified(maps):
    return [[[max(0.0, v) for v in row] for row in channel] for channel in maps]


def flat(maps):
    return [v for channel in maps for row in channel for v in row]


def cost(teacher, aggregated, squared):
    """||F_WL - F_W~||_2 of each image, mean over the batch."""
    total = 0.0
    for t, a in zip(teacher, aggregated, strict=True):
        square = sum((x - y) ** 2 for x, y in zip(flat(t), flat(a), strict=True))
        total += square if squared else math.sqrt(square)
    return total / len(teacher)


def psi(spreads, costs):
    """Eq. 9's second term: sum of mu_j cost_j, mu_j the spread over the mean of the spreads."""
    mean = sum(spreads) / len(spreads)
    return sum(spread / mean * c for spread, c in zip(spreads, costs, strict=True))


def matching(student, aggregated):
    """Sum over layers of the mean squared error; batches of maps of one shape."""
    total = 0.0
    for s, a in zip(student, aggregated, strict=True):
        values_s, values_t = [v for maps in s for v in flat(maps)], [v for maps in a for v in flat(maps)]
        total += sum((x - y) ** 2 for x, y in zip(values_s, values_t, strict=True)) / len(values_s)
    return total
