"""The task itself: cross-entropy against the labels."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Reading
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register


class LabelLoss(Loss):
    """Mean cross-entropy over the images whose label is known; ``loss(None, student_reading, batch)``."""

    student_logits = True

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Tensor:
        """The batch's labels, (B,) int64, -1 where unknown."""
        return self.require_batch(batch).labels

    def forward(self, student: Reading, target: Tensor) -> Tensor:
        """Cross-entropy of (B, classes) logits, float32; 0 if no image of the batch has a label."""
        logits = self.require_logits("student", student)
        total = F.cross_entropy(
            logits.float(), target, ignore_index=-1, label_smoothing=self.smoothing, reduction="sum"
        )
        return total / (target != -1).sum().clamp(min=1)  # PyTorch's own mean is NaN if no label is known


@register
@specification
class Labels(Knowledge):
    """Cross-entropy with the labels; no teacher.

    Attributes:
        smoothing: the share of the target that is spread evenly over all classes; 0 for one-hot labels.
    """

    summary: ClassVar[str] = "the labels themselves (the task); needs no teacher"
    needs_teacher: ClassVar[bool] = False
    reads_sections: ClassVar[bool] = False

    name: Literal["labels"] = "labels"
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def build(self, pairs: Pairs, setting: Setting | None = None) -> LabelLoss:
        """The task's loss; ``pairs`` is not used."""
        return LabelLoss(self.smoothing)
