import functools
import itertools

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.features.pairs import align_sections
from flowstill.features.sections import find_sections
from flowstill.features.taps import Tapped

# Network: side of the image, then the sizes that its sections have by its design (strides, pools, padding).
NETWORKS = {
    "torchvision:resnet18": (64, [16, 8, 4, 2]),
    "torchvision:vgg11_bn": (64, [32, 16, 8, 4]),
    "torchvision:alexnet": (64, [7, 3]),
    "torchvision:squeezenet1_1": (64, [15, 7, 3]),
    "torchvision:densenet121": (64, [16, 8, 4, 2]),
    "torchvision:googlenet": (64, [16, 8, 4, 2]),
    "torchvision:mobilenet_v2": (64, [32, 16, 8, 4, 2]),
    "torchvision:mobilenet_v3_small": (64, [16, 8, 4, 2]),
    "torchvision:mnasnet0_5": (64, [32, 16, 8, 4, 2]),
    "torchvision:shufflenet_v2_x0_5": (64, [8, 4, 2]),
    "torchvision:efficientnet_b0": (64, [32, 16, 8, 4, 2]),
    "torchvision:regnet_y_400mf": (64, [16, 8, 4, 2]),
    "torchvision:convnext_tiny": (64, [16, 8, 4, 2]),
    "timm:resnet10t": (64, [32, 16, 8, 4, 2]),
    "timm:efficientnet_b0": (64, [32, 16, 8, 4, 2]),
    "timm:convnext_atto": (64, [16, 8, 4, 2]),
    "timm:regnety_004": (64, [16, 8, 4, 2]),
    "timm:densenet121": (64, [16, 8, 4, 2]),
    "timm:mobilenetv3_small_050": (64, [16, 8, 4, 2]),
    "timm:mobilenetv4_conv_small": (64, [16, 8, 4, 2]),
    "timm:ghostnet_050": (64, [32, 16, 8, 4, 2]),
    "timm:dla46_c": (64, [64, 32, 16, 8, 4, 2]),
    "timm:nf_regnet_b0": (64, [16, 8, 4, 2]),
    "timm:repvgg_a0": (64, [16, 8, 4, 2]),
    "timm:ese_vovnet19b_slim": (64, [32, 16, 8, 4, 2]),
    "timm:rexnet_100": (64, [32, 16, 8, 4, 2]),
    "timm:resnetv2_18": (64, [16, 8, 4, 2]),
    "timm:hrnet_w18_small": (64, [16, 2]),
}
HEAVY = {
    "torchvision:inception_v3": (128, [61, 28, 13, 6, 2]),
    "torchvision:resnext50_32x4d": (64, [16, 8, 4, 2]),
    "torchvision:wide_resnet50_2": (64, [16, 8, 4, 2]),
    "torchvision:mobilenet_v3_large": (96, [48, 24, 12, 6, 3]),
    "torchvision:maxvit_t": (224, [112, 56, 28, 14, 7]),
    "timm:res2net50_26w_4s": (64, [16, 8, 4, 2]),
    "timm:cspdarknet53": (64, [32, 16, 8, 4, 2]),
    "timm:selecsls42b": (64, [16, 8, 4, 2, 1]),
    "timm:inception_v4": (128, [61, 28, 13, 6, 2]),
    "timm:nasnetalarge": (96, [24, 12, 6, 3]),
    "timm:xception41": (64, [32, 16, 8, 4, 2]),
    "timm:dm_nfnet_f0": (64, [32, 16, 8, 4, 2]),
    "timm:convnext_tiny": (64, [16, 8, 4, 2]),
    "timm:resnest14d": (64, [32, 16, 8, 4, 2]),
    "timm:tresnet_m": (64, [16, 8, 4, 2]),
    "timm:dpn48b": (64, [16, 8, 4, 2]),
}


def build(name, seed=0):
    torch.manual_seed(seed)
    library, _, name = name.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=10)
    import torchvision

    if name in ("vgg11_bn", "alexnet"):  # nine tenths of their weights are in the head: a small one instead
        with torch.device("meta"):
            net = torchvision.models.get_model(name)
            net.classifier = nn.Linear({"vgg11_bn": 512 * 7 * 7, "alexnet": 256 * 6 * 6}[name], 10)
        for module in net.to_empty(device="cpu").modules():
            getattr(module, "reset_parameters", lambda: None)()
        return net
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=10, **options)


def find_on_meta(name, image):
    with torch.device("meta"):
        return find_sections(build(name), (3, image, image))


resnet18_sections = functools.cache(functools.partial(find_on_meta, "torchvision:resnet18"))


def fsp(front, back):
    front = nn.functional.adaptive_max_pool2d(front, back.shape[2:])
    return torch.einsum("bmhw,bnhw->bmn", front, back) / back[0, 0].numel()


def hold_contract(name, image, sizes):
    images = torch.rand(2, 3, image, image, generator=torch.Generator().manual_seed(7))
    teacher, student = build(name, 0).eval().requires_grad_(False), build(name, 1).train()
    sections = find_sections(teacher, images)
    assert [s.size[0] for s in sections] == sizes
    assert all(s.first_shape[1:] == s.exit_shape[1:] for s in sections)
    for before, section in itertools.pairwise(
        sections
    ):  # what leaves one enters the next, after pooling if there is any
        assert section.entry == before.exit or section.entry_shape[1:] < before.exit_shape[1:]
        assert section.entry_shape[0] == before.exit_shape[0]

    pairs = align_sections(resnet18_sections(image), sections)
    assert pairs
    for pair in pairs:
        one, other = pair.teacher.size[0], pair.student.size[0]
        assert 0.7 < one / other < 1.42 or abs(one - other) == 1

    assert find_sections(student, (3, image, image)) == sections
    taps = {tap for s in sections for tap in (s.entry, s.first, s.exit)}
    taught, learning = Tapped(teacher, taps)(images), Tapped(student, taps)(images)
    gaps = [fsp(taught[s.entry], taught[s.exit]) - fsp(learning[s.entry], learning[s.exit]) for s in sections]
    sum(gap.square().sum() for gap in gaps).backward()
    gradient = next(m for m in student.modules() if isinstance(m, nn.Conv2d)).weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family(name):
    hold_contract(name, *NETWORKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", HEAVY)
def test_every_heavy_family(name):
    hold_contract(name, *HEAVY[name])


SAME_AS_TIMM = ["resnet18", "efficientnet_b0", "convnext_tiny", "regnety_004", "densenet121", "dla34", "mixnet_s"]
SAME_AS_TIMM += ["rexnet_100", "ese_vovnet19b_slim", "fasternet_t0", "mobilenetv1_100", "inception_next_atto"]


@pytest.mark.parametrize("name", SAME_AS_TIMM)
def test_exits_are_timms_feature_taps(name):
    import timm

    with torch.device("meta"):
        features = timm.create_model(name).feature_info
    features = {f["reduction"]: f["module"] for f in getattr(features, "info", features)}
    sections = find_on_meta(f"timm:{name}", 224)
    exits = {round(1 / s.scale[0]): str(s.exit) for s in sections}
    stem = None if 2 in exits else features.pop(2, None)
    assert features == exits
    # Where the stem pools, a section starts at what it pools, not at the map before.
    assert stem in (None, str(sections[0].entry)) or sections[0].entry_shape[1:] == (56, 56)


def test_sections_of_torchvision_networks():
    dense = [f"features.denseblock{i}" for i in (1, 2, 3, 4)]
    found = find_on_meta("torchvision:densenet121", 224)
    assert [str(s.entry) for s in found] == ["features.pool0", *dense[:3]]
    assert [str(s.exit) for s in found] == dense

    found = find_on_meta("torchvision:mobilenet_v3_large", 224)
    assert [str(s.exit) for s in found] == [f"features.{i}" for i in (1, 3, 6, 12, 15)]
    assert [str(s.first) for s in found] == [f"features.{i}" for i in (1, 2, 4, 7, 13)]

    found = find_on_meta("torchvision:resnet18", 224)
    assert [str(s.entry) for s in found] == ["maxpool", "layer1", "layer2", "layer3"]
    assert [str(s.first) for s in found] == [f"layer{i}.0" for i in (1, 2, 3, 4)]

    # The last section ends before the 1x1 convolution that widens or classifies.
    lasts = {"mobilenet_v2": "features.17", "efficientnet_b0": "features.7", "squeezenet1_1": "features.12"}
    for name, last in lasts.items():
        assert str(find_on_meta(f"torchvision:{name}", 224)[-1].exit) == last


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "torchvision:swin_t", "timm:mixer_s32_224"])
def test_networks_of_tokens_have_no_sections(name):
    with pytest.raises(NetworkError, match=r"No sections found in .* convolutions and maps of .*'flows' of the job"):
        find_on_meta(name, 224)
