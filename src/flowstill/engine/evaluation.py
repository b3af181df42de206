"""Accuracy on the test images, of one network or of the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from flowstill.engine.interface import Interface
from flowstill.features.modules import logits_in

if TYPE_CHECKING:
    from flowstill.data import ImageData


@torch.no_grad()
def evaluate_networks(
    fabric: Fabric,
    networks: Sequence[nn.Module],
    data: ImageData,
    *,
    interfaces: Sequence[Interface] | None = None,
    channels_last: bool = False,
    mean: Literal["softmax", "logits"] = "softmax",
    batch: int | None = None,
) -> dict[str, float]:
    """Evaluate the mean output of one or more networks on the test images.

    Args:
        networks: their mode (training or eval) is restored afterwards.
        interfaces: of the networks, in their order; None if all take the batches as they are.
        mean: what is averaged over several networks; it does not matter for one.
        batch: images at a time, by default the data's batch size.

    Returns:
        ``accuracy`` (top-1, percent), ``loss`` (mean cross-entropy), and ``top5`` (percent) for more than 5 classes.
    """
    classes = len(data.classes)
    top1 = MulticlassAccuracy(classes, average="micro").to(fabric.device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(fabric.device)
    loss = MeanMetric(nan_strategy="disable").to(fabric.device)
    training = [network.training for network in networks]
    for network in networks:
        network.eval()
    for images, labels in data.test_batches(
        batch=batch or data.spec.batch, device=fabric.device, rank=fabric.global_rank, world=fabric.world_size
    ):
        outputs = []
        for network, interface in zip(networks, interfaces or (None,) * len(networks), strict=True):
            shown = interface.images(images, testing=True) if interface else images
            if channels_last:
                shown = shown.contiguous(memory_format=torch.channels_last)
            with fabric.autocast():
                output = logits_in(network(shown)).float()
            outputs.append(interface.logits(output) if interface else output)
        logs = F.log_softmax(outputs[0], 1) if len(outputs) == 1 else _together(outputs, mean)
        top1.update(logs, labels)
        top5.update(logs, labels)
        loss.update(F.nll_loss(logs, labels), weight=len(labels))
    for network, mode in zip(networks, training, strict=True):
        network.train(mode)
    result = {"accuracy": _percent(top1), "loss": float(loss.compute())}
    return {**result, "top5": _percent(top5)} if classes > 5 else result


def _percent(share: Metric) -> float:
    """In percent, rounded to float32's precision."""
    return round(100 * float(share.compute()), 4)


def _together(outputs: Sequence[Tensor], mean: Literal["softmax", "logits"]) -> Tensor:
    """Log-probabilities of the mean of several outputs."""
    stacked = torch.stack(list(outputs))
    if mean == "logits":
        return F.log_softmax(stacked.mean(0), 1)
    return F.log_softmax(stacked, 2).logsumexp(0) - torch.log(torch.tensor(float(len(outputs))))
