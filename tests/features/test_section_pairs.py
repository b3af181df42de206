import itertools
import math

import pytest
import torch

from flowstill.errors import NetworkError, ShapeError, TapError
from flowstill.features.pairs import align_sections, pairs_by_hand, unpaired
from flowstill.features.sections import Section
from flowstill.features.taps import Tap
from flowstill.nets import create


def sizes(sections):
    return [s.size[0] for s in sections]


def section(size, image=32, channels=8, pooled=None):
    shape = (channels, size, size)
    name = Tap(f"at{size}")
    scale, pooled_scale = (size / image,) * 2, (pooled / image,) * 2 if pooled else None
    return Section(name, name, name, shape, shape, shape, scale, pooled_scale)


def paired(pairs):
    return [(p.teacher.size[0], p.student.size[0]) for p in pairs]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        ([32, 16, 8], [32, 16, 8], [(32, 32), (16, 16), (8, 8)]),
        ([56, 28, 14, 7], [28, 7], [(28, 28), (7, 7)]),
        ([16, 8, 4, 2], [15, 7, 3, 1], [(16, 15), (8, 7), (4, 3), (2, 1)]),  # unpadded strides
        ([4, 2, 1], [2, 1], [(2, 2), (1, 1)]),  # not (4, 2): equal sizes are nearer than a pixel apart
        ([112, 55, 27], [56, 28], [(55, 56), (27, 28)]),
        ([64, 45, 32], [45, 32], [(45, 45), (32, 32)]),
        ([32, 16], [8, 4], [(32, 8), (16, 4)]),  # nothing fits, as many: by order
    ],
)
def test_sections_pair_by_order_and_relative_size(teacher, student, expected):
    teacher, student = ([section(size, 224) for size in each] for each in (teacher, student))
    pairs = align_sections(teacher, student)
    assert paired(pairs) == expected
    assert sizes(unpaired(teacher, pairs)) == [s.size[0] for s in teacher if s.size[0] not in dict(expected)]
    assert len(unpaired(student, pairs)) == len(student) - len(expected)


def test_sizes_are_relative_to_each_networks_image():
    pairs = align_sections([section(56, 224), section(28, 224)], [section(16, 64), section(8, 64)])
    assert paired(pairs) == [(56, 16), (28, 8)]


def test_the_alignment_is_the_best_of_all():
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        octaves = (torch.rand(n, generator=generator).mul(6).sort().values.tolist() for n in (4, 3))
        teacher, student = ([section(2 ** (8 - octave), 1 << 30) for octave in each] for each in octaves)

        def gap(pair):
            return abs(math.log2(pair[0].scale[0] / pair[1].scale[0]))

        ways = []
        for count in range(1, 4):
            for those in itertools.combinations(teacher, count):
                for these in itertools.combinations(student, count):
                    gaps = [gap(pair) for pair in zip(those, these, strict=True)]
                    if max(gaps) < 0.5:
                        ways.append((-count, sum(gaps)))
        if not ways:
            with pytest.raises(NetworkError):
                align_sections(teacher, student)
            continue
        pairs = align_sections(teacher, student)
        assert -len(pairs) == min(ways)[0]
        assert sum(gap((p.teacher, p.student)) for p in pairs) == pytest.approx(min(ways)[1])


def test_unpairable_sections_are_an_error():
    with pytest.raises(NetworkError, match=r"Teacher: at28 28x28, at14 14x14\. Student: at112 112x112\..*by hand"):
        align_sections([section(28, 224), section(14, 224)], [section(112, 224)])


def test_pairs_by_hand():
    teacher, student = create("resnet14", width=2), create("resnet8")
    flows = [(("layer1.0", "layer2"), ("conv1", "layer2")), (("layer2", "avgpool:input"), ("layer2", "layer3"))]
    pairs = pairs_by_hand(teacher, student, (3, 32, 32), flows)
    assert [str(p.teacher.exit) for p in pairs] == ["layer2", "avgpool:input"]
    assert [(p.teacher.entry_shape, p.teacher.exit_shape) for p in pairs] == [
        ((32, 32, 32), (64, 16, 16)),
        ((64, 16, 16), (128, 8, 8)),
    ]
    assert [(p.student.entry_shape, p.student.exit_shape) for p in pairs] == [
        ((16, 32, 32), (32, 16, 16)),
        ((32, 16, 16), (64, 8, 8)),
    ]
    assert [p.student.first for p in pairs] == [Tap("conv1"), Tap("layer2")]
    assert [p.student.scale for p in pairs] == [(1 / 2, 1 / 2), (1 / 4, 1 / 4)]


def test_pairs_by_hand_refuse_tensors_that_are_not_maps():
    net = create("resnet8")
    with pytest.raises(TapError, match="layer4"):
        pairs_by_hand(net, net, (3, 32, 32), [(("layer3", "layer4"), ("layer2", "layer3"))])
    with pytest.raises(ShapeError, match=r"'fc' of ResNet: expected a feature map .*shape \(1, 10\)"):
        pairs_by_hand(net, net, (3, 32, 32), [(("layer2", "layer3"), ("layer3", "fc"))])
