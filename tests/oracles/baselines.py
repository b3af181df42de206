"""Soft logits, attention transfer and NST from their papers' formulas, by scalar loops in float64."""

import math


def softmax(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [p / sum(powers) for p in powers]


def soft_logits(student, teacher, temperature, divergence, squared):
    total = 0.0
    for zs, zt in zip(student, teacher, strict=True):
        ps, pt = softmax(zs, temperature), softmax(zt, temperature)
        for p_student, p_teacher in zip(ps, pt, strict=True):
            total -= p_teacher * math.log(p_student)
            if divergence == "kl":
                total += p_teacher * math.log(p_teacher)
    return total / len(student) * (temperature**2 if squared else 1)


def average_pool(maps, height, width):
    """(C, H, W) to (C, height, width), whole ratios only."""
    ratio_y, ratio_x = len(maps[0]) // height, len(maps[0][0]) // width
    return [
        [
            [
                sum(channel[y * ratio_y + a][x * ratio_x + b] for a in range(ratio_y) for b in range(ratio_x))
                / (ratio_y * ratio_x)
                for x in range(width)
            ]
            for y in range(height)
        ]
        for channel in maps
    ]


def same_size(student, teacher):
    height, width = min(len(student[0]), len(teacher[0])), min(len(student[0][0]), len(teacher[0][0]))
    return average_pool(student, height, width), average_pool(teacher, height, width)


def attention_map(maps):
    flat = [sum(channel[y][x] ** 2 for channel in maps) for y in range(len(maps[0])) for x in range(len(maps[0][0]))]
    norm = math.sqrt(sum(q * q for q in flat))
    return [q / norm if norm else 0.0 for q in flat]


def attention(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = same_size(s, t)
        squares = [(a - b) ** 2 for a, b in zip(attention_map(s), attention_map(t), strict=True)]
        total += sum(squares) / len(squares)
    return total / len(student)


def patterns(maps):
    rows = []
    for channel in maps:
        flat = [value for line in channel for value in line]
        norm = math.sqrt(sum(v * v for v in flat))
        rows.append([v / norm if norm else 0.0 for v in flat])
    return rows


def mean_kernel(xs, ys):
    return sum(sum(a * b for a, b in zip(x, y, strict=True)) ** 2 for x in xs for y in ys) / (len(xs) * len(ys))


def nst(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        s, t = (patterns(maps) for maps in same_size(s, t))
        total += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    return total / len(student)
