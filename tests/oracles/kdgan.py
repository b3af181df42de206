"""KDGAN's losses from the paper's objective, by scalar loops in float64."""

import math

from oracles.baselines import soft_logits, softmax


def gumbel(uniform):
    return -math.log(-math.log(uniform))


def sample(logits, noise, temperature):
    return softmax([z + g for z, g in zip(logits, noise, strict=True)], temperature)


def one_hot(label, classes):
    return [1.0 if c == label else 0.0 for c in range(classes)]


def discriminator(features, label, first, bias, second, offset):
    """D(x, y) in (0, 1), of a perceptron with one rectified hidden layer."""
    inputs = [*features, *label]
    hidden = [
        max(0.0, b + sum(w * v for w, v in zip(row, inputs, strict=True))) for row, b in zip(first, bias, strict=True)
    ]
    return 1 / (1 + math.exp(-(offset + sum(w * h for w, h in zip(second, hidden, strict=True)))))


def side(name, student, teacher, features, labels, noise, temperature, weights, alpha, beta, gamma, tau, own_labels):
    """The loss of one side; ``noise`` of C's samples, then of T's. own_labels: the weight of the labels in T's."""
    judged = {"student": [], "teacher": []}
    real = []
    for i, x in enumerate(features):
        for player, logits, g in (("student", student[i], noise[0][i]), ("teacher", teacher[i], noise[1][i])):
            judged[player].append(discriminator(x, sample(logits, g, temperature), *weights))
        real.append(discriminator(x, one_hot(labels[i], len(student[i])), *weights))
    if name == "student":
        fooled = sum(math.log(1 - d) for d in judged["student"]) / len(features)
        return alpha * fooled + beta * soft_logits(student, teacher, tau, "kl", True)
    if name == "teacher":
        fooled = sum(math.log(1 - d) for d in judged["teacher"]) / len(features)
        known = [(logits, label) for logits, label in zip(teacher, labels, strict=True) if label >= 0]
        learned = -sum(math.log(softmax(logits, 1.0)[label]) for logits, label in known) / len(labels)
        return (1 - alpha) * fooled + gamma * soft_logits(teacher, student, tau, "kl", True) + own_labels * learned
    total, known = 0.0, 0
    for i, label in enumerate(labels):
        if label >= 0:
            total -= (
                math.log(real[i])
                + alpha * math.log(1 - judged["student"][i])
                + (1 - alpha) * math.log(1 - judged["teacher"][i])
            )
            known += 1
    return total / max(1, known)
