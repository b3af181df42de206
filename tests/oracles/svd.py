"""Truncated SVD, its gradient and distilled feature vectors from the equations of Lee et al. (2018), in float64.

Maps are numpy arrays (D, H, W) of one image; vectors are lists of columns. ``numpy.linalg.svd`` decomposes; everything
else is scalar loops.
"""

import itertools
import math

import numpy as np


def matrix(maps):
    """The paper's M: one row for each position, one column for each channel."""
    depth, height, width = maps.shape
    m = np.zeros((height * width, depth))
    for d in range(depth):
        for y in range(height):
            for x in range(width):
                m[y * width + x, d] = maps[d, y, x]
    return m


def truncated_svd(maps, rank):
    """sigma [k] and vectors [k][D], k = min(rank, H W, D)."""
    _, sigma, vt = np.linalg.svd(matrix(maps), full_matrices=False)
    k = min(rank, len(sigma))
    return [float(s) for s in sigma[:k]], [[float(x) for x in row] for row in vt[:k]]


def svd_gradient(maps, vectors, grads):
    """d/dmaps of L where dL/dv_j = grads[j], for the v_j given (their signs matter): first-order perturbation.

    dv_j = sum over all other right-singular directions v_i of v_i (v_i . (dM^T M + M^T dM) v_j) / (s_j^2 - s_i^2), where
    s_i = 0 outside the row space. Put together entry by entry of dM.
    """
    m = matrix(maps)
    positions, depth = m.shape
    _, sigma, vt = np.linalg.svd(m, full_matrices=True)
    squares = [sigma[i] ** 2 if i < len(sigma) else 0.0 for i in range(depth)]
    gradient = np.zeros_like(m)
    for j, v_j in enumerate(vectors):
        m_vj = [sum(m[p, d] * v_j[d] for d in range(depth)) for p in range(positions)]
        for i in range(depth):
            if i == j:
                continue
            factor = sum(vt[i, d] * grads[j][d] for d in range(depth)) / (squares[j] - squares[i])
            m_vi = [sum(m[p, d] * vt[i, d] for d in range(depth)) for p in range(positions)]
            for p in range(positions):
                for d in range(depth):  # v_i . (dM^T M + M^T dM) v_j for dM = one at (p, d)
                    gradient[p, d] += factor * (vt[i, d] * m_vj[p] + m_vi[p] * v_j[d])
    return gradient.T.reshape(maps.shape)


def paper_gradient(maps, vectors, grads):
    """Eq. 1-2 as printed, all sums over the k retained vectors."""
    m = matrix(maps)
    k = len(vectors)
    v, grad = np.array(vectors).T, np.array(grads).T
    sigma = np.array([np.linalg.norm(m @ v[:, j]) for j in range(k)])
    u = np.stack([m @ v[:, j] / sigma[j] for j in range(k)], 1)
    big_k = np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            if i != j:
                big_k[i, j] = 1 / (sigma[i] ** 2 - sigma[j] ** 2)
    s = np.diag(sigma)

    def sym(a):
        return (a.T + a) / 2

    if m.shape[0] <= m.shape[1]:
        e = grad @ np.linalg.inv(s)
        result = u @ e.T - u @ np.diag(np.diag(e.T @ v)) @ v.T - 2 * u @ sym(big_k * (s.T @ v.T @ e)) @ s.T @ v.T
    else:
        result = 2 * u @ s @ sym(big_k.T * (v.T @ grad)) @ v.T
    return result.T.reshape(maps.shape)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def scaled(vector, factor):
    return [factor * x for x in vector]


def canonical(vector):
    """The sign for which the entries add up to no less than 0."""
    return scaled(vector, -1.0) if sum(vector) < 0 else vector


def weights(sigma):
    """Eq. 4."""
    norm = math.sqrt(sum(s * s for s in sigma))
    return [s / norm for s in sigma]


def alignment(teacher, student, matching="greedy"):
    """Eq. 5: for each teacher vector the number of the student's."""
    likeness = [[abs(dot(t, s)) for s in student] for t in teacher]
    if matching == "greedy":
        return [max(range(len(student)), key=lambda j, row=row: row[j]) for row in likeness]
    choices = itertools.permutations(range(len(student)), len(teacher))
    return list(max(choices, key=lambda choice: sum(likeness[i][j] for i, j in enumerate(choice))))


def features(teacher_maps, student_maps, k, matching="greedy"):
    """F_T and F_S of one map, Eq. 3-8: lists of k vectors each; the teacher's signs made canonical before Eq. 6."""
    sigma, teacher = truncated_svd(teacher_maps, k)
    _, student = truncated_svd(student_maps, k + 1)
    teacher = [canonical(v) for v in teacher]
    f_t, f_s = [], []
    for v, w, j in zip(teacher, weights(sigma), alignment(teacher, student, matching), strict=True):
        f_t.append(scaled(v, w))
        f_s.append(scaled(student[j], -w if dot(v, student[j]) < 0 else w))
    return f_t, f_s


def dfv(front, back, beta=8.0):
    """Eq. 9-10: [l][m][n]."""
    return [
        [[math.exp(-((a - b) ** 2) / beta) for b in back_l] for a in front_l]
        for front_l, back_l in zip(front, back, strict=True)
    ]


def transfer_loss(teacher, student, modules, rank, *, beta=8.0, reduction="sum", matching="greedy", sqrt_rank=False):
    """Eq. 11. teacher, student: one (B, D, H, W) array for each tap; modules: pairs of numbers of taps."""
    total, images = 0.0, len(teacher[0])
    for front, back in modules:
        for b in range(images):
            ends = [
                (net[tap][b].shape[0], net[tap][b].shape[1] * net[tap][b].shape[2])
                for net in (teacher, student)
                for tap in (front, back)
            ]
            k = min(rank, *(min(end) for end in ends))
            front_t, front_s = features(teacher[front][b], student[front][b], k, matching)
            back_t, back_s = features(teacher[back][b], student[back][b], k, matching)
            squares = 0.0
            for t_l, s_l in zip(dfv(front_t, back_t, beta), dfv(front_s, back_s, beta), strict=True):
                for t_m, s_m in zip(t_l, s_l, strict=True):
                    for t, s in zip(t_m, s_m, strict=True):
                        squares += (t - s) ** 2
            total += squares / 2 * (math.sqrt(k) if sqrt_rank else 1.0)
    return total / images if reduction == "mean" else total
