"""Where the papers' networks are tapped: sections of teacher and student, and the papers' own points."""

import itertools

import pytest

import flowstill as fs
from flowstill.features.pairs import pairs_by_hand
from flowstill.features.sections import find_sections
from support.paper_networks import CIFAR, IMAGENET, on_meta

TEACHERS = {  # of each student, and the image they see
    "vgg-student": ("vgg-teacher", CIFAR),
    "vgg-student-strided": ("vgg-teacher", CIFAR),
    "mobilenet-student": ("mobilenet-teacher", CIFAR),
    "resnext-student": ("resnext-teacher", CIFAR),
    "resnet8-kr": ("resnet26", CIFAR),
    "resnet20-imagenet": ("resnet34-imagenet", IMAGENET),
    "inception-bn": ("resnet101-imagenet", IMAGENET),
}


@pytest.mark.parametrize("student", TEACHERS)
def test_sections_of_teacher_and_student_correspond(student):
    teacher, shape = TEACHERS[student]
    networks = on_meta(teacher), on_meta(student)
    pairs = fs.pair_sections(*networks, shape)
    assert [(str(p.teacher.exit), str(p.student.exit)) for p in pairs] == {
        "vgg-student": [
            ("block2.relu2", "block2.relu1"),
            ("block3.relu3", "block3.relu1"),
            ("block4.relu3", "block4.relu1"),
        ],
        "vgg-student-strided": [("block2.relu2", "block2"), ("block3.relu3", "block3"), ("block4.relu3", "block4")],
        "mobilenet-student": [(f"dsc{width}",) * 2 for width in (64, 128, 256, 1024)],
        "resnext-student": [(f"block{i}",) * 2 for i in (1, 2, 3)],
        "resnet8-kr": [("layer2", "module1"), ("layer3", "module2")],
        "resnet20-imagenet": [(f"layer{i}",) * 2 for i in (1, 2, 3, 4)],
        "inception-bn": [
            ("layer1", "conv2"),
            ("layer2", "inception3b"),
            ("layer3", "inception4d"),
            ("layer4", "inception5b"),
        ],
    }[student]
    assert len(pairs) == len(find_sections(networks[1], shape))
    narrower = ("resnet8-kr", "inception-bn")
    assert student in narrower or all(p.teacher.exit_shape[0] == p.student.exit_shape[0] for p in pairs)


def test_the_first_section_of_a_224_pixel_resnet_starts_at_the_pooled_map():
    """Of CUB's ResNet-34 and ResNet-20 as of ResNet-101: the blocks are given the pooled map, 64 channels of 56 pixels."""
    for name in ("resnet34-imagenet", "resnet20-imagenet", "resnet101-imagenet"):
        sections = find_sections(on_meta(name), IMAGENET)
        assert [str(s.entry) for s in sections] == ["maxpool", "layer1", "layer2", "layer3"]
        assert sections[0].entry_shape == (64, 56, 56)


def paper_pairs(teacher, student, points):
    flows = [((front, back), (front, back)) for front, back in itertools.pairwise(points)]
    return pairs_by_hand(teacher, student, CIFAR, flows)


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [
        ("vgg-student", {}, [16, 8, 4, 2]),
        ("vgg-student-strided", {}, [15, 7, 3, 1]),
        ("vgg-student-strided", {"padding": "SAME"}, [16, 8, 4, 2]),
    ],
)
def test_vgg_can_be_tapped_after_each_pooling(name, options, sizes):
    """The paper's taps: the three modules between them, 64 to 128, 256 and 512 channels."""
    pairs = paper_pairs(on_meta("vgg-teacher"), on_meta(name, **options), [f"block{i}" for i in (1, 2, 3, 4)])
    for side, expected in (("teacher", [16, 8, 4, 2]), ("student", sizes)):
        found = [getattr(pair, side) for pair in pairs]
        assert [found[0].entry_shape, *(s.exit_shape for s in found)] == [
            (d, s, s) for d, s in zip((64, 128, 256, 512), expected, strict=True)
        ]


@pytest.mark.parametrize(
    ("family", "points", "shapes"),
    [
        ("mobilenet", ["dsc64", "dsc128", "dsc256", "dsc512"], [(64, 32), (128, 16), (256, 8), (512, 4)]),
        ("resnext", ["conv0", "block1", "block2", "block3"], [(64, 32), (64, 32), (128, 16), (256, 8)]),
    ],
)
def test_the_papers_taps_have_equal_shapes_in_both_networks(family, points, shapes):
    pairs = paper_pairs(on_meta(f"{family}-teacher"), on_meta(f"{family}-student"), points)
    for side in ("teacher", "student"):
        found = [getattr(pair, side) for pair in pairs]
        assert [found[0].entry_shape, *(s.exit_shape for s in found)] == [(d, s, s) for d, s in shapes]
