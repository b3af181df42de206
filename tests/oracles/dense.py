"""Dense flows and their steps (Yeo et al. 2018) and shuffled matrices, by scalar loops over nested lists of floats.

Maps are [tap][image][channel][row][column], X_0 .. X_n; a span (a, b) runs from X_a to X_b.
"""

from oracles import fsp


def spans(n):
    """Every a < b."""
    found = []
    for a in range(n + 1):
        for b in range(n + 1):
            if a < b:
                found.append((a, b))
    return found


def start_anchored(n, s):
    """L_s = sum over b = s .. n of the span (s - 1, b)."""
    found = []
    b = s
    while b <= n:
        found.append((s - 1, b))
        b += 1
    return found


def end_anchored(n, s):
    """L_s = sum over a < s of the span (a, s)."""
    found = []
    a = 0
    while a < s:
        found.append((a, s))
        a += 1
    return found


def alphas(weighting, channels, chosen):
    """Of the chosen spans; equal: 1 / (number of entries of the matrices of all spans, chosen or not)."""
    entries = 0
    for a, b in spans(len(channels) - 1):
        entries += channels[a] * channels[b]
    found = []
    for a, b in chosen:
        if weighting == "equal":
            found.append(1 / entries)
        elif weighting == "sum":
            found.append(1.0)
        else:
            assert weighting == "element_mean"
            found.append(1 / (channels[a] * channels[b]))
    return found


def loss(teacher_maps, student_maps, chosen, weights, orders=None):
    """sum over the chosen spans of weight * mean over the images of ||G^T - G^S||^2, the teacher's G shuffled."""
    teacher, student = [], []
    for number, (a, b) in enumerate(chosen):
        matrices = fsp.fsp_matrix(teacher_maps[a], teacher_maps[b])
        teacher.append([shuffled(g, *orders[number]) for g in matrices] if orders else matrices)
        student.append(fsp.fsp_matrix(student_maps[a], student_maps[b]))
    return fsp.fsp_loss(teacher, student, weights)


def shuffled(matrix, rows, columns):
    """Entry (i, j) is what was at (rows[i], columns[j])."""
    moved = []
    for i in rows:
        row = []
        for j in columns:
            row.append(matrix[i][j])
        moved.append(row)
    return moved


def extends(wide, narrow):
    """Whether an order leaves the copied channels, which come first, unchanged and the added ones after them."""
    for place, channel in enumerate(narrow):
        if wide[place] != channel:
            return False
    return all(channel >= len(narrow) for channel in wide[len(narrow) :])
