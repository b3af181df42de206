"""How the gradients of task and transfer are combined (Lee et al. 2018, section 3.2), by loops over plain floats.

A gradient is a list of variables, each a list of floats, or None where the loss does not reach it.
"""

import math


def norm(values):
    return math.sqrt(sum(value * value for value in values))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def with_l2(task, weights, decays, decay):
    """task_i + decay * weights_i for the variables that decay."""
    found = []
    for gradient, values, does in zip(task, weights, decays, strict=True):
        if gradient is None or not does:
            found.append(gradient)
        else:
            found.append([g + decay * w for g, w in zip(gradient, values, strict=True)])
    return found


def clip_factor(transfer, bound):
    return bound / norm(transfer) if norm(transfer) > bound else 1.0


def factors(mode, task, transfer, epoch, regularised):
    """What each variable's transfer gradient is multiplied by; ``regularised`` is the task's gradient with its L2 term."""
    if mode in ("official", "ce_norm"):
        against = regularised if mode == "official" else task
        return [
            0.0 if a is None else 1.0 if b is None else clip_factor(b, sigmoid(epoch) * norm(a))
            for a, b in zip(against, transfer, strict=True)
        ]
    # Eq. 13: each norm is over all of Theta_S; where a loss does not reach, its gradient is 0.
    tasks = norm([value for a in task if a is not None for value in a])
    transfers = norm([value for b in transfer if b is not None for value in b])
    if mode == "global":
        factor = min(1.0, sigmoid(epoch) * tasks / transfers) if transfers > 0 else 1.0
    else:
        assert mode == "eq14_literal"
        factor = sigmoid(tasks / transfers - epoch) if 0 < transfers < tasks else 1.0
    return [factor] * len(task)


def met(mode, task, transfer, epoch, regularised=None):
    """The gradient for each variable; None where nothing is left to move it."""
    scales = factors(mode, task, transfer, epoch, task if regularised is None else regularised)
    found = []
    for a, b, factor in zip(task, transfer, scales, strict=True):
        if b is None or (a is None and factor == 0.0):
            found.append(a)
        elif a is None:
            found.append([factor * y for y in b])
        else:
            found.append([x + factor * y for x, y in zip(a, b, strict=True)])
    return found


def sgd(weights, gradient, momenta, lr, momentum, nesterov, decay):
    """One step of SGD on one variable, with its L2 term. Returns the new weights and momenta."""
    stepped, kept = [], []
    for w, g, m in zip(weights, gradient, momenta, strict=True):
        g = g + decay * w
        m = momentum * m + g
        stepped.append(w - lr * (g + momentum * m if nesterov else m))
        kept.append(m)
    return stepped, kept
