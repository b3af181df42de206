"""What several losses share: precision, pooling to one size, the frame of losses between maps."""

import inspect
import re

import pytest
import torch

import flowstill as fs
from flowstill.errors import RecipeError
from flowstill.knowledge.maps import MapsLoss, precise, same_size
from flowstill.knowledge.numbered import check_in_range, check_numbers
from flowstill.knowledge.products import max_pooled
from flowstill.transfer import recoding, rules, schedules, stages
from flowstill.transfer.knowledge import KNOWLEDGE

SPECIFICATIONS = [
    *KNOWLEDGE.values(),
    rules.AdaptiveClip,
    recoding.Recoding,
    *(schedules.Constant, schedules.Milestones, schedules.Linear, schedules.Cosine),
    *(stages.Term, stages.Optimizer, stages.Player, stages.Update, stages.Stored, stages.Stage),
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precise_is_float32_or_better(given, expected):
    maps = torch.ones(1, 2, dtype=given)
    assert precise(maps).dtype == expected
    assert (precise(maps) is maps) == (given == expected)


def test_the_larger_map_is_average_pooled():
    large, small = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 3, 2, 2)
    means = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    for one, other in (same_size(large, small), same_size(small, large)[::-1]):
        assert torch.equal(one, means)
        assert other is small
    tall, wide = same_size(torch.zeros(1, 1, 6, 2), torch.zeros(1, 1, 3, 4))
    assert tall.shape == wide.shape == (1, 1, 3, 2)


def test_max_pooling_by_whole_and_other_ratios():
    maps = torch.arange(36.0).view(1, 1, 6, 6)
    assert max_pooled(maps, (6, 6)) is maps
    assert torch.equal(max_pooled(maps, (2, 3))[0, 0], torch.tensor([[13.0, 15.0, 17.0], [31.0, 33.0, 35.0]]))
    assert max_pooled(maps, (4, 4)).shape == (1, 1, 4, 4)


def test_a_loss_between_maps_sums_its_pairs():
    class Gap(MapsLoss):
        def compare_maps(self, student, teacher):
            return (student - teacher).abs().mean()

    images = torch.zeros(2, 1, 1, 1)
    teacher = fs.Reading(images, None, {fs.Tap("a"): images + 3, fs.Tap("b"): images + 5})
    student = fs.Reading(images, None, {fs.Tap("c"): images + 1, fs.Tap("d"): images + 1})
    assert Gap(["a", "b"], ["c", "d"], 0.5)(teacher, student).item() == 0.5 * (2 + 4)
    with pytest.raises(
        NotImplementedError, match=r"MapsLoss must define the method compare_maps\(self, student, teach"
    ):
        MapsLoss(["a"], ["c"])(teacher, student)


@pytest.mark.parametrize(
    ("numbers", "freeze_below", "said"),
    [
        ((), False, "sections (): list at least one section, each once; or leave it out"),
        ((1, 1), False, "sections (1, 1): list at least one section, each once"),
        (None, True, "'freeze_below' needs section numbers above 0 in 'sections'"),
        ((0, 2), True, "'freeze_below' needs section numbers above 0 in 'sections'"),
        ((), True, "'freeze_below' needs section numbers above 0"),
    ],
)
def test_invalid_section_numbers_are_refused(numbers, freeze_below, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        check_numbers("sections", numbers, freeze_below, "leave it out")
    check_numbers("sections", (2, 1), True, "leave it out")
    check_numbers("sections", None, False, "leave it out")


def test_section_numbers_are_below_the_number_of_pairs():
    check_in_range("fsp", "sections", (0, 1), [None, None])
    with pytest.raises(RecipeError, match="fsp: no section 2: the networks pair in 2 sections, numbered from 0 to 1"):
        check_in_range("fsp", "sections", (0, 2), [None, None])


@pytest.mark.parametrize("kind", SPECIFICATIONS, ids=lambda kind: kind.__name__)
def test_every_option_is_described_once_in_the_docstring(kind):
    """By a section ``Attributes:``; a name with one value needs no entry."""
    fields = {
        name
        for name, field in kind.__pydantic_fields__.items()
        if name != "name" or kind in (stages.Optimizer, stages.Stage)
    }
    _, _, section = inspect.getdoc(kind).partition("\nAttributes:\n")
    described = re.findall(r"^    (\w+): (\S.+)", section.partition("\n\n")[0], re.MULTILINE)
    assert [name for name, _ in described] == [name for name in kind.__pydantic_fields__ if name in fields]
    assert all(len(text) > 8 for _, text in described)
