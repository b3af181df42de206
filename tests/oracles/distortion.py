"""Gaussian blur and clipped noise by scalar loops, in float64."""

import math


def blurred(values: list[list[float]], sigma: float = 1.0) -> list[list[float]]:
    """One channel: each pixel is the mean of all pixels, weighted by exp(-distance squared / (2 sigma squared))."""
    height, width = len(values), len(values[0])
    result = []
    for y in range(height):
        row = []
        for x in range(width):
            total = weights = 0.0
            for v in range(height):
                for u in range(width):
                    weight = math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * sigma**2))
                    total += weight * values[v][u]
                    weights += weight
            row.append(total / weights)
        result.append(row)
    return result


def clipped_moments(mean: float, sigma: float) -> tuple[float, float]:
    """Mean and deviation of round(mean + noise) within 0 to 255, the noise normal with deviation ``sigma``."""

    def below(value: float) -> float:
        return 0.5 * math.erfc(-(value - mean) / (sigma * math.sqrt(2)))

    first = second = 0.0
    for value in range(256):
        low = 0.0 if value == 0 else below(value - 0.5)
        high = 1.0 if value == 255 else below(value + 0.5)
        first += value * (high - low)
        second += value**2 * (high - low)
    return first, math.sqrt(second - first**2)
