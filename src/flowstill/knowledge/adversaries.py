"""The two networks that KDGAN's student plays against, and what each side of the game minimises."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.features.copying import copied
from flowstill.features.modules import logits_in


def discrimination_loss(real: Tensor, student: Tensor, teacher: Tensor, alpha: float = 0.5) -> Tensor:
    """What D minimises, for each image: -log D(real) - alpha log(1 - D(student)) - (1 - alpha) log(1 - D(teacher)).

    Args:
        real: D's logits (B,) for the true labels.
        student: D's logits (B,) for the student's samples.
        teacher: D's logits (B,) for the teacher's samples.
        alpha: the student's share.

    Returns:
        (B,), above 0; 2 log 2 if D cannot tell.
    """
    return -(F.logsigmoid(real) + alpha * F.logsigmoid(-student) + (1 - alpha) * F.logsigmoid(-teacher))


def deception_loss(scores: Tensor) -> Tensor:
    """What a player of samples minimises: E log(1 - D), a scalar below 0.

    Args:
        scores: D's logits, (B,).
    """
    return F.logsigmoid(-scores).mean()


class Discriminator(nn.Module):
    """D: a perceptron on features and label, with one rectified hidden layer."""

    def __init__(self, features: int, classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(features + classes, hidden), nn.Linear(hidden, 1)

    def forward(self, features: Tensor, label: Tensor) -> Tensor:
        """(B, features) and (B, classes) -> the logit of D, (B,), float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            hidden: Tensor = self.first(torch.cat([features, label], 1)).relu()
            logits: Tensor = self.second(hidden)
            return logits.squeeze(1)


class TeacherCopy(nn.Module):
    """T: a trainable copy of the teacher, always in eval mode."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.network = copied(teacher).requires_grad_(True)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> logits (B, classes), float32."""
        return logits_in(self.network(images)).float()
