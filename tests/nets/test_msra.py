"""The initialisation of He et al. (ICCV 2015), Eq. 10, in every network of the papers that say so, and by ``init: msra``."""

import math

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets import build, create
from flowstill.nets.layers import initialise_he
from flowstill.recipes.load import load_recipe, recipe_names

CHOSEN = {
    "resnet26": {},
    "resnet8x2": {"shortcut": "B"},
    "resnet20-imagenet": {},
    "resnet34-imagenet": {},
    "torchvision:squeezenet1_1": {},
    "timm:test_resnet": {},
}


def layers(network):
    """Each convolution and linear layer, and the standard deviation of Eq. 10: sqrt(2 / (k k c)), c the channels that a unit reads."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            yield module, math.sqrt(2 / (math.prod(module.kernel_size) * module.in_channels // module.groups))
        elif isinstance(module, nn.Linear):
            yield module, math.sqrt(2 / module.in_features)


def assert_msra(network):
    for module, std in layers(network):
        weight, count = module.weight.detach(), module.weight.numel()
        # five standard errors of a normal sample's mean and deviation
        assert abs(weight.mean()) < 5 * std / math.sqrt(count)
        assert abs(weight.std() / std - 1) < 5 / math.sqrt(2 * count)
        assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", CHOSEN)
def test_init_msra_draws_all_layers_by_fan_in(name):
    torch.manual_seed(0)
    network, usual = (create(name, 10, **CHOSEN[name], **options) for options in ({"init": "msra"}, {}))
    assert_msra(network)
    for module, same in zip(
        network.modules(), usual.modules(), strict=True
    ):  # BatchNorm, which the paper does not draw
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            assert all(torch.equal(a, b) for a, b in zip(module.parameters(False), same.parameters(False), strict=True))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_other_channel_counts_are_drawn_the_same_way(in_channels):
    torch.manual_seed(0)
    for name in ("resnet8", "resnet20-imagenet", "torchvision:resnet18"):
        assert_msra(create(name, 10, in_channels, init="msra"))


def test_each_weight_is_a_normal_draw_times_the_formula():
    network = nn.Sequential(nn.Conv2d(6, 4, (3, 5), groups=2), nn.Conv2d(4, 8, 1, bias=False), nn.Linear(8, 5))
    torch.manual_seed(3)
    initialise_he(network)
    torch.manual_seed(3)
    for module, std in layers(network):
        torch.testing.assert_close(module.weight.detach(), std * torch.empty_like(module.weight).normal_())


@pytest.mark.parametrize("name", ["resnet8", "resnet20-imagenet", "torchvision:resnet18", "timm:test_resnet"])
def test_without_the_option_nothing_changes(name):
    """Nor does it draw: what follows has the same numbers."""
    torch.manual_seed(0)
    network, after = create(name, 10), torch.rand(())
    torch.manual_seed(0)
    other = create(name, 10, init="msra")
    pairs = zip(layers(network), layers(other), strict=True)
    assert not all(torch.equal(a.weight, b.weight) for (a, _), (b, _) in pairs)
    default = {"resnet8": {"init": "he"}, "resnet20-imagenet": {"init": "torchvision"}}.get(name, {})
    torch.manual_seed(0)
    again = create(name, 10, **default)
    assert torch.equal(torch.rand(()), after)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet20-imagenet", {"init": "he"}, "init 'he': choose 'torchvision' or 'msra'"),
        ("torchvision:resnet18", {"init": "he"}, "torchvision:resnet18: init 'he': choose 'msra'"),
        ("timm:resnet18", {"init": "msra", "pretrained": True}, "Drop 'init' or 'pretrained'"),
    ],
)
def test_unsupported_layers_are_refused(name, options, said):
    with pytest.raises(NetworkError, match=said):
        create(name, 10, **options)


TABLES = [name for name in recipe_names() if name.startswith(("fsp-", "dense-", "svd-"))]


def test_networks_of_the_papers_that_say_msra_have_it():
    """Yim et al., section 4.1, and Lee et al., section 4.2; Yeo et al. print no setting and have Yim et al.'s."""
    jobs = [job for name in TABLES for job in load_recipe(name).jobs.values()]
    fresh = {repr(job.network): job.network for job in jobs if not job.network.options.get("pretrained")}
    assert len(fresh) > 10
    for network in fresh.values():
        torch.manual_seed(0)
        assert_msra(build(network, num_classes=100))


def test_other_recipes_keep_the_usual_initialisation():
    names = [name for name in recipe_names() if name not in TABLES]
    found = {job.network.options.get("init") for name in names for job in load_recipe(name).jobs.values()}
    assert found == {None, "xavier"}  # Figure 5 of Liu et al. tries another
