"""Each loss in a plain training loop: ``loss(teacher_reading, student_reading)``, without the engine."""

import copy

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.errors import DataError, NetworkError, RecipeError, ShapeError, TapError
from flowstill.features.pairs import pair_sections
from flowstill.knowledge.fsp import FSPLoss
from flowstill.transfer.knowledge import KNOWLEDGE
from flowstill.transfer.rules import Rule

SHAPE, CLASSES = (3, 8, 8), 4
LR = {"hints": 0.05, "attention": 0.05, "nst": 0.05, "svd": 0.02, "aggregation": 0.02}
NEEDS_BATCH = ["kdgan", "labels"]


class Named(nn.Module):
    """A small network whose modules carry its name, so that no other network has the same taps."""

    def __init__(self, name, width=4, blocks=2):
        super().__init__()
        self.order = []
        channels = SHAPE[0]
        for section in range(2):
            for block in range(blocks):
                stride = 2 if section and not block else 1
                self._add(f"{name}_conv{section}{block}", nn.Conv2d(channels, width * 2**section, 3, stride, padding=1))
                self._add(f"{name}_relu{section}{block}", nn.ReLU())
                channels = width * 2**section
        self._add(f"{name}_pool", nn.AdaptiveAvgPool2d(1))
        self._add(f"{name}_flat", nn.Flatten())
        self._add(f"{name}_fc", nn.Linear(channels, CLASSES))

    def _add(self, name, module):
        self.add_module(name, module)
        self.order.append(name)

    def forward(self, images):
        for name in self.order:
            images = self.get_submodule(name)(images)
        return images


@pytest.fixture
def teacher():
    torch.manual_seed(3)
    return Named("t", blocks=3).requires_grad_(False).eval()


@pytest.fixture
def student():
    torch.manual_seed(4)
    return Named("s")


@pytest.fixture
def batch():
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    return fs.Batch(images, torch.arange(6) % CLASSES, torch.arange(6), torch.zeros(6, dtype=torch.long))


def build(name, teacher, student):
    """The loss that this knowledge builds by default."""
    pairs, setting = pair_sections(teacher, student, SHAPE), fs.Setting(teacher, student, SHAPE, CLASSES)
    if name == "aggregated":
        KNOWLEDGE.find("aggregation")().build(pairs, setting)
    return KNOWLEDGE.find(name)().build(pairs, setting)


def readings(loss, teacher, student, images):
    with torch.no_grad():
        reading_t = fs.Tapped(teacher, loss.teacher_taps)(images)
    return reading_t, fs.Tapped(student, loss.student_taps)(images)


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_a_few_steps_of_a_plain_loop_lower_the_loss(name, teacher, student, batch):
    loss = build(name, teacher, student)
    moving = [*student.parameters(), *(p for part in loss.parts().values() for p in part.parameters())]
    optimizer = torch.optim.Adam(moving, lr=LR.get(name, 0.01))
    values = []
    for _ in range(20):
        value = loss(*readings(loss, teacher, student, batch.images), batch)
        assert value.dtype == torch.float32
        assert value.shape == ()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_the_loss_is_what_the_engine_computes_and_survives_a_deep_copy(name, teacher, student, batch):
    loss = build(name, teacher, student)
    reading_t, reading_s = readings(loss, teacher, student, batch.images)
    expected = loss.compare(reading_s, loss.target(reading_t, batch))
    assert torch.equal(loss(reading_t, reading_s, batch), expected)
    assert torch.equal(copy.deepcopy(loss)(reading_t, reading_s, batch), expected)


@pytest.mark.parametrize("name", [name for name in KNOWLEDGE if name not in NEEDS_BATCH])
def test_the_loss_can_be_compiled(name, teacher, student, batch):
    loss = build(name, teacher, student)
    reading_t, reading_s = readings(loss, teacher, student, batch.images)
    torch.compiler.reset()
    compiled = torch.compile(lambda reading_t, reading_s: loss(reading_t, reading_s), backend="eager")
    torch.testing.assert_close(compiled(reading_t, reading_s), loss(reading_t, reading_s))


@pytest.mark.parametrize("name", [name for name in KNOWLEDGE if name not in ("labels", "soft_logits", "aggregation")])
def test_swapped_readings_are_refused(name, teacher, student, batch):
    loss = build(name, teacher, student)
    reading_t, reading_s = readings(loss, teacher, student, batch.images)
    with pytest.raises(
        TapError, match=rf"{type(loss).__name__} expects \(teacher_reading, student_reading\)"
    ) as caught:
        loss(reading_s, reading_t, batch)
    assert str(caught.value).endswith("Swap the two.")


@pytest.mark.parametrize("name", ["labels", "soft_logits", "aggregation"])
def test_missing_maps_are_named_if_swapping_cannot_be_detected(name, teacher, student, batch):
    """Logits look the same from both networks; readings without them do not."""
    loss = build(name, teacher, student)
    bare = fs.Reading(batch.images)
    _, reading_s = readings(loss, teacher, student, batch.images)
    cases = {"labels": (None, bare), "soft_logits": (bare, reading_s), "aggregation": (bare, reading_s)}
    role = "student" if name == "labels" else "teacher"
    with pytest.raises(TapError, match=f"The {role}'s reading lacks '(logits|t_.*)'. Read it with Tapped"):
        loss(*cases[name], batch)


@pytest.mark.parametrize("name", KNOWLEDGE)
@pytest.mark.parametrize("wrong", [torch.zeros(2, 4), "a network", 3])
def test_arguments_that_are_not_readings_are_refused(name, wrong, teacher, student, batch):
    loss = build(name, teacher, student)
    reading_t, reading_s = readings(loss, teacher, student, batch.images)
    kind = type(wrong).__name__
    fix = "Pass None" if name == "labels" else r"Read it with Tapped\(teacher, loss.teacher_taps"
    with pytest.raises(TapError, match=f"Received as teacher: {kind}. {fix}"):
        loss(wrong, reading_s, batch)
    fix = "Pass None" if name == "aggregation" else r"Read it with Tapped\(student, loss.student_taps"
    with pytest.raises(TapError, match=f"Received as student: {kind}. {fix}"):
        loss(reading_t, wrong, batch)


@pytest.mark.parametrize("name", [name for name in KNOWLEDGE if KNOWLEDGE[name].needs_teacher])
def test_a_target_without_a_teachers_reading_is_refused(name, teacher, student, batch):
    loss = build(name, teacher, student)
    with pytest.raises(
        TapError, match=r"Received no teacher's reading. Read it with Tapped\(teacher, loss.teacher_taps"
    ):
        loss.target(None, batch)
    with pytest.raises(TapError, match="Received as teacher: NoneType"):
        loss(None, readings(loss, teacher, student, batch.images)[1], batch)


@pytest.mark.parametrize("name", NEEDS_BATCH)
def test_a_missing_batch_is_named(name, teacher, student, batch):
    loss = build(name, teacher, student)
    with pytest.raises(DataError, match="Received no batch"):
        loss(*readings(loss, teacher, student, batch.images))


def test_losses_are_built_without_a_specification(teacher, student, batch):
    """From the names of the taps, with the papers' constants."""
    reading_t = fs.Tapped(teacher, ["t_relu02", "t_relu12"])(batch.images)
    reading_s = fs.Tapped(student, ["s_relu01", "s_relu11"])(batch.images)
    ends = list(reading_t.maps), list(reading_s.maps)
    expected = sum(fs.attention_loss(reading_s[s], reading_t[t]) for t, s in zip(*ends, strict=True))
    torch.testing.assert_close(fs.AttentionLoss(*ends)(reading_t, reading_s), 500 * expected)
    torch.testing.assert_close(
        fs.NSTLoss(["t_relu12"], ["s_relu11"])(reading_t, reading_s),
        25 * fs.nst_loss(reading_s["s_relu11"], reading_t["t_relu12"]),
    )
    torch.testing.assert_close(
        fs.SoftLogitsLoss()(reading_t, reading_s), fs.soft_logits_loss(reading_s.logits, reading_t.logits)
    )
    flows = [fs.Flow(*taps) for taps in ends]
    matrices = [
        fs.fsp_matrix(reading[f.front], reading[f.back])
        for reading, f in zip((reading_t, reading_s), flows, strict=True)
    ]
    loss = FSPLoss(flows[:1], flows[1:], [2.0])
    torch.testing.assert_close(loss(reading_t, reading_s), fs.fsp_loss(matrices[1:], matrices[:1], [2.0]))


# The same fault raises the same kind of error with the same sentence, whatever the knowledge.


@pytest.mark.parametrize("name", KNOWLEDGE)
def test_losses_without_pairs_of_sections(name, teacher, student):
    kind = KNOWLEDGE[name]
    for setting in (None, fs.Setting(teacher, student, SHAPE, CLASSES)):
        if not kind.reads_sections:
            kind().build((), setting)
            continue
        with pytest.raises(ShapeError, match=f"^{name} needs at least one pair of sections. Received none: .*'flows'"):
            kind().build((), setting)


@pytest.mark.parametrize("name", ["hints", "kdgan", "aggregation", "aggregated"])
def test_losses_without_a_teacher(name, teacher, student):
    pairs, kind = pair_sections(teacher, student, SHAPE), KNOWLEDGE[name]
    said = rf"^{name} needs a setting with a teacher. Received (.*)\. Give the job a teacher"
    for setting, received in (
        (None, "no setting"),
        (fs.Setting(None, student, SHAPE, CLASSES), "a setting without one"),
    ):
        with pytest.raises(RecipeError, match=said.replace("(.*)", received)):
            kind().build(pairs, setting)


@pytest.mark.parametrize(
    "name", [name for name in KNOWLEDGE if name not in ("hints", "kdgan", "aggregation", "aggregated")]
)
def test_other_losses_need_only_the_pairs(name, teacher, student):
    assert isinstance(KNOWLEDGE[name]().build(pair_sections(teacher, student, SHAPE)), fs.Loss)


def test_a_subclass_that_lacks_a_method_is_told_which():
    class Empty(fs.Loss):
        pass

    class Nothing(fs.Knowledge):
        pass

    class Rules(Rule):
        pass

    reading = fs.Reading(torch.zeros(1, *SHAPE))
    with pytest.raises(NotImplementedError, match=r"Empty must define the method target\(self, teacher, batch=None\)"):
        Empty()(None, reading)
    with pytest.raises(NotImplementedError, match=r"Empty must define the method forward\(self, student, target\)"):
        Empty().compare(reading, None)
    with pytest.raises(NotImplementedError, match=r"Nothing must define the method build\(self, pairs, setting=None\)"):
        Nothing().build(())
    with pytest.raises(NotImplementedError, match=r"Rules must define the method meet\(self, task, transfer"):
        Rules().meet((), (), step=0, decayed=list)


def test_errors_have_the_types_that_callers_catch():
    assert issubclass(ShapeError, NetworkError)
    assert issubclass(TapError, NetworkError)
