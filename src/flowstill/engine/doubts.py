"""Why a trained network does worse on the test images than it should: wrong images, wrong classes, wrong network."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowstill.engine.interface import Interface, same_scale
from flowstill.errors import option
from flowstill.features.modules import logits_in
from flowstill.nets import Preprocessing
from flowstill.nets.published import IMAGENET_MEAN, IMAGENET_STD

CLEAR = 5.0  # percentage points
SIZES = (32, 64, 96, 128, 160, 224, 299)
USUAL = {
    "values from 0 to 1": ((0.0,), (255.0,)),
    "values from -1 to 1": ((127.5,), (127.5,)),
    "values from 0 to 255": ((0.0,), (1.0,)),
    "ImageNet's mean and deviation": (IMAGENET_MEAN, IMAGENET_STD),
}


@dataclass(frozen=True)
class Seen:
    """What a look at a trained network has found.

    Attributes:
        job: name of its job.
        whose: what messages call it.
        network: on the device, in eval mode.
        interface: how it sees the images.
        images: (N, C, H, W), normalised as the data's.
        labels: (N,).
        outputs: (N, classes), of the network.
        device: where the network is.
    """

    job: str
    whose: str
    network: nn.Module
    interface: Interface
    images: Tensor
    labels: Tensor
    outputs: Tensor
    device: torch.device

    @property
    def right(self) -> Tensor:
        """(N,) bool: whether the largest output is the label's."""
        return self.outputs.argmax(1) == self.labels

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.right.float().mean())


@dataclass(frozen=True)
class Cause:
    """An explanation that fits the images far better.

    Attributes:
        what: the cause, in words that fit after "with".
        accuracy: in percent, if it is true.
        fix: the change to the recipe.
    """

    what: str
    accuracy: float
    fix: str


def doubts(
    seen: Seen, classes: Sequence[str], recorded: float | None, outputs: Sequence[str] | None, spare: float
) -> Iterator[str]:
    """What is odd about a trained network, one message each; none if nothing is.

    Args:
        classes: names of the data's classes.
        recorded: its known accuracy in percent.
        outputs: names of its outputs, if they are known.
        spare: number of images that may be run to find out.
    """
    renamed = outputs is not None and tuple(outputs) != tuple(classes) and sorted(outputs) == sorted(classes)
    if renamed and outputs is not None:
        yield (
            f"{seen.whose}: the outputs are in the order {_listed(outputs)}, but the data's classes in the order "
            f"{_listed(classes)}. {_fix(f'data.classes={_flow(outputs)}')}"
        )
    count = len(seen.labels)
    share = float(seen.labels.bincount().max()) / count  # correct if it always predicted the most common class
    chance = share + 2 * math.sqrt(share * (1 - share) / count)
    by_chance = seen.accuracy / 100 <= chance
    error = 300 * math.sqrt(max(0.0, seen.accuracy / 100 * (1 - seen.accuracy / 100)) / count)
    below = recorded is not None and seen.accuracy < recorded - max(CLEAR, error)
    odd = by_chance or below
    causes: list[Cause] = []
    if (odd or spare > 20 * count) and not renamed:
        found = _causes(seen, classes, math.inf if odd else spare / (20 * count))
        causes = sorted((c for c in found if c.accuracy / 100 > chance), key=lambda cause: -cause.accuracy)
    if not (odd or causes):
        return
    says = f"{seen.whose}: {seen.accuracy:.1f} % of {count} test images are classified correctly"
    if below:
        says += f", but its file records {recorded:.2f} %"
    elif by_chance:
        says += f", no more than by chance ({100 * share:.1f} %)"
    if causes:
        says += f". With {causes[0].what} it would be {causes[0].accuracy:.1f} %: {_fix(causes[0].fix)}"
    elif not renamed:
        says += (
            ". No other order of classes or channels, common normalisation or image size explains it. "
            + ("Its weights are untrained, or" if by_chance else "Most likely")
            + " they were trained in a different network: compare padding, shortcuts and activations with the original "
            "code, and the outputs for one image."
        )
    yield says


def _causes(seen: Seen, classes: Sequence[str], larger: float) -> Iterator[Cause]:
    order = class_order(seen.outputs, seen.labels)
    if order is not None:
        names = [classes[number] for number in order]
        permuted = torch.tensor(order)[seen.outputs.argmax(1)]
        accuracy = 100 * float((permuted == seen.labels).float().mean())
        yield Cause(f"the classes in the order {_listed(names)}", accuracy, f"data.classes={_flow(names)}")
    for what, own in _views(seen, larger):
        right = _tried(seen, replace(seen.interface, own=own))
        if right is not None and clearly_better(right, seen.right):
            changed = {key: value for key, value in _changes(seen.interface.own, own)}
            values = ", ".join(f"{key}: {value}" for key, value in changed.items())
            fix = f"{seen.job}.network.preprocessing={{{values}}}"
            yield Cause(what, 100 * float(right.float().mean()), fix)


def _changes(old: Preprocessing, new: Preprocessing) -> Iterator[tuple[str, str]]:
    if not same_scale(old, new):
        yield "mean", _flow(new.mean or ())
        yield "std", _flow(new.std or ())
    if old.order != new.order:
        yield "order", str(new.order)
    if old.size != new.size:
        yield "size", _flow(new.size or ())


def _views(seen: Seen, larger: float) -> Iterator[tuple[str, Preprocessing]]:
    """Other ways to see the images, each with its name; of other sizes, those of up to ``larger`` times the pixels."""
    interface, channels = seen.interface, seen.interface.shape[0]
    own = interface.own
    scales = {**USUAL, "the data's own mean and deviation": (interface.data.mean or (), interface.data.std or ())}
    for what, (mean, std) in scales.items():
        if len(mean) not in (1, channels):
            continue
        other = replace(
            own, mean=mean if len(mean) == channels else mean * 3, std=std if len(std) == channels else std * 3
        )
        if not same_scale(own, other):
            yield what, other
        if channels == 3:
            swapped = replace(other, order="rgb" if own.order == "bgr" else "bgr")
            with_ = "" if same_scale(own, other) else f" and {what}"
            yield (
                f"channels in the order {'red, green, blue' if own.order == 'bgr' else 'blue, green, red'}{with_}",
                swapped,
            )
    for side in SIZES:
        small = side <= 4 * max(interface.data.size or (side,)) and side**2 <= larger * math.prod(own.size or (side,))
        if small and own.size != (side, side):
            yield f"images of {side} x {side} pixels", replace(own, size=(side, side))


@torch.no_grad()
def _tried(seen: Seen, interface: Interface) -> Tensor | None:
    """(N,) bool: which images it classifies correctly in another view; None if it cannot take that view."""
    try:
        parts = [
            logits_in(seen.network(interface.images(part.to(seen.device), testing=True))).cpu().argmax(1)
            for part in torch.split(seen.images, 32)
        ]
    except Exception:  # whatever the network raises: it was not made for such images
        return None
    return torch.cat(parts) == seen.labels


def clearly_better(one: Tensor, other: Tensor) -> bool:
    """Whether ``one`` is right on far more images than ``other``, both (N,) bool: by 5 points and by McNemar's test.

    The test is exact and one-sided, at 1 in 10 000, since many explanations are tried.
    """
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    changed = gained + lost
    if 100 * (gained - lost) < CLEAR * len(one):
        return False
    return bool(sum(math.comb(changed, k) for k in range(gained, changed + 1)) < 2**changed / 10_000)


def class_order(outputs: Tensor, labels: Tensor) -> list[int] | None:
    """The class that each output stands for, if another order of the classes fits far better.

    Found on one half of the images and judged on the other, both ways round.

    Args:
        outputs: (N, classes).
        labels: (N,).
    """
    from scipy.optimize import linear_sum_assignment

    said, classes = outputs.argmax(1), outputs.shape[1]

    def best(rows: Tensor) -> Tensor:
        table = torch.zeros(classes, classes)
        table.index_put_((said[rows], labels[rows]), torch.ones(len(rows)), accumulate=True)
        table += 0.5 * torch.eye(classes)  # of equal orders, prefer the present one
        return torch.from_numpy(linear_sum_assignment(table.numpy(), maximize=True)[1])

    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    halves = rows.tensor_split(2)
    judged = torch.zeros(len(labels), dtype=torch.bool)
    for one, other in (halves, halves[::-1]):
        judged[other] = best(one)[said[other]] == labels[other]
    whole = best(rows)
    fits = (whole[said] == labels).float().mean() > 0.5
    return whole.tolist() if fits and clearly_better(judged, said == labels) else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _flow(values: Sequence[object]) -> str:
    """Values as a list of YAML."""
    return "[" + ", ".join(map(_plain, values)) + "]"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9][\w -]*", value) else json.dumps(value)


def _fix(change: str) -> str:
    return f"{option('set', change)}."
