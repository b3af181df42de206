"""Soft logits: the teacher's softened predictions.

Hinton, Vinyals and Dean: "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.errors import ShapeError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Reading
from flowstill.knowledge.maps import precise
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import SAME_CLASSES, added, register_method
from flowstill.transfer.stages import Stage

Divergence = Literal["kl", "cross_entropy"]


def soft_logits_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, divergence: Divergence = "kl", squared: bool = True
) -> Tensor:
    """How far the student's softened predictions are from the teacher's, mean over the batch.

    P = softmax(logits / temperature). ``kl`` is sum P_T log(P_T / P_S); ``cross_entropy`` is -sum P_T log P_S, which has
    the same gradient. A class that the teacher rules out by a logit of -inf counts 0.

    Args:
        student: logits, (B, classes).
        teacher: logits, (B, classes).
        temperature: above 0; the higher, the softer.
        divergence: ``kl`` or ``cross_entropy``.
        squared: multiply by temperature^2, so that the gradient's size does not depend on the temperature.

    Returns:
        A float32 scalar (float64 for float64), at least 0.

    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> soft_logits_loss(logits, logits).item()
    0.0
    """
    student, teacher = precise(student), precise(teacher)
    target, log_student = F.softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    masked = teacher == -torch.inf
    log_student = log_student.masked_fill(masked, 0)  # 0 log 0 is 0, not NaN
    if divergence == "kl":
        log_teacher = F.log_softmax(teacher / temperature, 1).masked_fill(masked, 0)
        loss = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
    else:
        loss = -(target * log_student).sum(1).mean()
    return loss * temperature**2 if squared else loss


class SoftLogitsLoss(Loss):
    """``soft_logits_loss`` of two readings; its arguments are ``SoftLogits``'s."""

    teacher_logits = True
    same_classes = True
    student_logits = True
    storable = True

    def __init__(self, temperature: float = 4.0, divergence: Divergence = "kl", squared: bool = True) -> None:
        super().__init__()
        self.temperature, self.divergence, self.squared = temperature, divergence, squared

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Tensor:
        """The teacher's logits, (B, classes), float32 or better."""
        return precise(self.require_logits("teacher", self.require_teacher(teacher)).detach())

    def forward(self, student: Reading, target: Tensor) -> Tensor:
        """A float32 scalar.

        Raises:
            ShapeError: teacher and student have different numbers of classes.
        """
        logits = self.require_logits("student", student)
        if logits.shape != target.shape:
            raise ShapeError(
                f"Soft logits need the same classes in both networks, but the teacher gives {target.shape[1]} and the "
                f"student {logits.shape[1]}. Fine-tune the teacher on the student's task first."
            )
        return soft_logits_loss(logits, target, self.temperature, self.divergence, self.squared)


@register
@specification
class SoftLogits(Knowledge):
    """The teacher's softened predictions.

    The terms' weights balance it against the task: ``a`` for this term, ``1 - a`` for the labels.

    Attributes:
        temperature: divides both networks' logits before the softmax. Public code uses 4 with a weight of 0.9; the
            FitNet baseline of the FSP paper uses 3 with a weight that falls from 4 to 1.
        divergence: ``kl``, the Kullback-Leibler divergence of Hinton et al., or ``cross_entropy``, the H(P_T, P_S) of
            FitNets (Romero et al. 2015, Eq. 2). Their gradients are the same.
        squared: multiply the loss by temperature^2, as Hinton et al. advise and FitNets does not.
    """

    summary: ClassVar[str] = "the teacher's softened predictions; needs the same classes in both networks"
    paper: ClassVar[str] = "Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network"
    reads_sections: ClassVar[bool] = False

    name: Literal["soft_logits"] = "soft_logits"
    temperature: Annotated[float, Field(gt=0)] = 4.0
    divergence: Divergence = "kl"
    squared: bool = True

    def build(self, pairs: Pairs, setting: Setting | None = None) -> SoftLogitsLoss:
        """The loss; ``pairs`` is not used."""
        return SoftLogitsLoss(self.temperature, self.divergence, self.squared)


@register_method(
    "kd",
    transfers="the teacher's softened predictions (soft logits)",
    needs=SAME_CLASSES,
    paper="Hinton et al. 2015",
)
def _added() -> tuple[Stage, ...]:
    return added(SoftLogits(), 0.9)
