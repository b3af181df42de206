"""Helpers of messages: suggestions, lengths, and options in the words of Python or of the command line."""

import pytest

from flowstill.errors import FlowstillError, RecipeError, command_line_words, did_you_mean, nearest, option, readable


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("techer", ["student", "teacher"], "teacher"),
        ("resnet62", ["resnet8", "resnet26"], "resnet26"),  # two letters swapped are one edit
        ("fps", ["kd", "fsp"], "fsp"),
        ("fxp", ["kd", "fsp"], "fsp"),
        ("xps", ["kd", "fsp"], None),  # two edits in three letters
        ("rl", ["mu", "lr"], "lr"),
        ("a", ["b", "c"], None),
        ("root", ["out"], None),
        ("joi", ["alone", "joint"], "joint"),
        ("", ["b", "c"], None),
        ("mixup", ["flip", "crop"], None),
        ("abcxyz", ["abcdef"], None),  # three edits
        ("abcxyf", ["abcdef"], "abcdef"),
        ("FSP", ["kd", "fsp"], "fsp"),
        ("vgg", ["resnet8", "vgg-teacher"], "vgg-teacher"),
        ("teacher", ["vgg-teacher"], "vgg-teacher"),
        ("cifar", ["digits", "cifar10"], "cifar10"),
        ("random_crop_size", ["flip", "crop"], "crop"),
        ("conv1.weight", ["module.conv1.weight"], "module.conv1.weight"),
        ("on", ["on-and-off"], None),  # too short to be a part
        ("sp", ["wasp-nest"], None),  # letters inside a word are no part
        ("x" * 10_000, ["teacher"], None),
    ],
)
def test_suggestions(name, choices, expected):
    assert nearest(name, choices) == ([expected] if expected else [])


def test_edits_rank_before_parts_and_nearer_ones_first():
    assert nearest("resnet", ["resnet-wide-deep", "resnet-wide", "resnt", "rxsnxt"], count=4) == [
        "resnt",
        "rxsnxt",
        "resnet-wide",
        "resnet-wide-deep",
    ]


def test_without_a_suggestion_up_to_twelve_choices_are_listed():
    names = [f"{letter * 5}" for letter in "abcdefghijklmno"]
    assert did_you_mean("?", names[:12]) == f"Choose from {', '.join(map(repr, names[:12]))}."
    assert did_you_mean("?", names) == ""
    assert did_you_mean("?", []) == ""


@pytest.mark.parametrize("long", ["x" * 10_000, "a b " * 2500, str(list(range(3000)))])
def test_long_messages_are_cut_in_the_middle(long):
    said = str(RecipeError(f"Expected a name. Received: {long!r}. Did you mean 'digits'?"))
    assert said.startswith("Expected a name. Received: ")
    assert said.endswith(". Did you mean 'digits'?")
    assert "..." in said
    assert len(said) <= 1200


def test_short_messages_are_unchanged():
    said = f"{'/folder' * 30}/file.yaml: {'a word and ' * 60}"
    assert str(FlowstillError(said)) == said


def test_extra_lines_are_counted_and_control_characters_escaped():
    said = readable("\n".join(f"line {number}" for number in range(1000)))
    assert said.splitlines()[-1] == "... and 960 more lines"
    assert len(said.splitlines()) == 41
    assert readable("a\x1b[31mb\rc") == r"a\x1b[31mb\rc"


def test_options_in_two_languages():
    given = [("out", None), ("resume", True), ("trust_code", True), ("device", "gpu"), ("set", "data={batch: 3}")]
    assert [option(*one) for one in given] == [
        "out=",
        "resume=True",
        "trust_code=True",
        "device='gpu'",
        "set='data={batch: 3}'",
    ]
    with command_line_words():
        assert [option(*one) for one in given] == [
            "--out",
            "--resume",
            "--trust-code",
            "--device gpu",
            "--set 'data={batch: 3}'",
        ]
    assert option("out") == "out="
