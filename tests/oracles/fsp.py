"""The FSP matrix and its loss from the equations of Yim et al. (2017), by scalar loops over nested lists of floats.

Maps are [image][channel][row][column], matrices are [image][i][j].
"""

import itertools


def fsp_matrix(front, back):
    """Eq. 1 for every image; the larger map is max-pooled first (section 4)."""
    height = min(len(front[0][0]), len(back[0][0]))
    width = min(len(front[0][0][0]), len(back[0][0][0]))
    matrices = []
    for f1, f2 in zip(max_pool(front, height, width), max_pool(back, height, width), strict=True):
        m, n = len(f1), len(f2)
        g = [[0.0] * n for _ in range(m)]
        for i in range(m):
            for j in range(n):
                for s in range(height):
                    for t in range(width):
                        g[i][j] += f1[i][s][t] * f2[j][s][t]
                g[i][j] /= height * width
        matrices.append(g)
    return matrices


def max_pool(maps, height, width):
    """Each output is the largest of its share of rows and columns; shares overlap if the ratio is not whole."""
    return [[max_pool_channel(channel, height, width) for channel in image] for image in maps]


def max_pool_channel(channel, height, width):
    pooled = []
    for s in range(height):
        row = []
        for t in range(width):
            largest = float("-inf")
            for y in share(s, height, len(channel)):
                for x in share(t, width, len(channel[0])):
                    largest = max(largest, channel[y][x])
            row.append(largest)
        pooled.append(row)
    return pooled


def share(cell, cells, size):
    """Positions of 0 .. size-1 that touch the interval from cell/cells to (cell+1)/cells of the whole."""
    return [p for p in range(size) if (p + 1) * cells > cell * size and p * cells < (cell + 1) * size]


def fsp_loss(teacher_matrices, student_matrices, alphas):
    """Eq. 2: 1/N sum_x sum_i alpha_i ||G_i^T(x) - G_i^S(x)||^2; matrices are [i][image][row][column]."""
    images = len(teacher_matrices[0])
    total = 0.0
    for x in range(images):
        for i, alpha in enumerate(alphas):
            total += alpha * squared_distance(teacher_matrices[i][x], student_matrices[i][x])
    return total / images


def squared_distance(one, other):
    total = 0.0
    for row_of_one, row_of_other in zip(one, other, strict=True):
        for a, b in zip(row_of_one, row_of_other, strict=True):
            total += (a - b) ** 2
    return total


def alphas(weighting, shapes):
    """equal: 1 / (number of entries of all matrices). sum: 1. element_mean: 1 / (entries of each by itself)."""
    if weighting == "equal":
        entries = 0
        for m, n in shapes:
            entries += m * n
        return [1 / entries for _ in shapes]
    if weighting == "sum":
        return [1.0 for _ in shapes]
    assert weighting == "element_mean"
    return [1 / (m * n) for m, n in shapes]


def stage_one(teacher_maps, student_maps, weighting):
    """Eq. 2 for the flows between neighbours of a row of maps: X0 -> X1, X1 -> X2, ..."""
    teacher = [fsp_matrix(front, back) for front, back in itertools.pairwise(teacher_maps)]
    student = [fsp_matrix(front, back) for front, back in itertools.pairwise(student_maps)]
    shapes = [(len(g[0]), len(g[0][0])) for g in teacher]
    return fsp_loss(teacher, student, alphas(weighting, shapes))
