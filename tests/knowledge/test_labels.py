"""Cross-entropy with the labels, against loops."""

import math

import pytest
import torch

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError, TapError
from flowstill.features.taps import Reading
from flowstill.knowledge.labels import Labels
from flowstill.transfer.knowledge import parse_knowledge


def draw(images=6, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(images, classes, generator=generator), torch.randint(classes, (images,), generator=generator)


def reading(logits):
    return Reading(torch.zeros(len(logits), 3, 4, 4), logits)


def cross_entropy(logits, labels, smoothing):
    """Mean over the known labels of -sum_c q_c log p_c, where q spreads ``smoothing`` evenly over all classes."""
    total, known = 0.0, 0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label == -1:
            continue
        known += 1
        log_sum = math.log(sum(math.exp(z) for z in row))
        for c, z in enumerate(row):
            q = smoothing / len(row) + (1 - smoothing) * (c == label)
            total -= q * (z - log_sum)
    return total / known


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unknown", [(), (0, 3, 4)])
def test_loss_equals_the_loops(smoothing, unknown):
    logits, labels = draw()
    labels[list(unknown)] = -1
    loss = Labels(smoothing=smoothing).build(())
    assert loss.compare(reading(logits), labels).item() == pytest.approx(
        cross_entropy(logits, labels, smoothing), rel=1e-5
    )


def test_equal_logits_have_the_log_of_the_classes_as_loss():
    assert Labels().build(()).compare(reading(torch.zeros(4, 10)), torch.arange(4)).item() == pytest.approx(
        math.log(10)
    )


def test_images_without_a_label_get_no_gradient():
    logits, labels = draw()
    labels[2] = -1
    logits.requires_grad_()
    Labels().build(()).compare(reading(logits), labels).backward()
    assert torch.count_nonzero(logits.grad[2]) == 0
    assert (logits.grad[labels != -1].norm(dim=1) > 0).all()


def test_a_batch_without_labels_has_zero_loss():
    logits, labels = draw()
    logits.requires_grad_()
    loss = Labels().build(()).compare(reading(logits), torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(logits.grad) == 0  # NaN would count


def test_gradient_is_probability_minus_target():
    logits, labels = draw()
    labels[0] = -1
    logits.requires_grad_()
    Labels(smoothing=0.1).build(()).compare(reading(logits), labels).backward()
    wanted = torch.full_like(logits, 0.1 / 5)
    wanted[torch.arange(6), labels] += 0.9
    expected = (logits.detach().softmax(dim=1) - wanted) / 5
    expected[0] = 0
    torch.testing.assert_close(logits.grad, expected)


def test_loss_is_float32_for_half_precision_logits():
    logits, labels = draw()
    loss = Labels().build(())
    low = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss.compare(reading(low), labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(cross_entropy(low, labels, 0.0), rel=1e-5)


def test_the_target_is_the_batchs_labels():
    _, labels = draw()
    loss = Labels().build(())
    batch = Batch(torch.zeros(6, 3, 4, 4), labels, torch.arange(6), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(loss.target(None, batch), labels)
    assert loss.student_logits
    assert not loss.teacher_logits
    assert loss.teacher_taps == loss.student_taps == ()
    assert loss.parts() == {}
    with pytest.raises(
        ValueError, match=r"LabelLoss expects \(teacher_reading, student_reading, batch\). Received no batch"
    ):
        loss.target(None)


def test_forward_that_stopped_early_is_refused():
    with pytest.raises(TapError, match="The student's reading lacks 'logits'"):
        Labels().build(()).compare(Reading(torch.zeros(1, 3, 4, 4)), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, "much"])
def test_smoothing_is_a_share_below_one(smoothing):
    with pytest.raises(RecipeError, match=r"Labels\.smoothing"):
        Labels(smoothing=smoothing)


def test_labels_by_name():
    assert parse_knowledge("labels") == Labels()
    assert parse_knowledge({"name": "labels", "smoothing": 0.1}) == Labels(smoothing=0.1)
    assert not Labels().needs_teacher
