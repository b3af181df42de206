import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.features.pairs import pairs_by_hand
from flowstill.features.sections import find_sections
from flowstill.nets import create


def taps(sections):
    return [(str(s.entry), str(s.first), str(s.exit)) for s in sections]


def sizes(sections):
    return [s.size[0] for s in sections]


class Restless(nn.Module):
    """Draws random numbers, counts its calls and overwrites its input even in eval mode; its train() counts too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.switched = 0

    def train(self, mode=True):
        self.switched += 1
        return super().train(mode)

    def forward(self, x):
        self.count += 1
        x += torch.rand_like(x)
        return x


def test_the_network_is_unchanged():
    net = nn.Sequential(Restless(), nn.Dropout2d(), create("resnet8")).train()
    net[2].bn1.eval()
    net[2].conv1.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    images, random, switched = torch.rand(2, 3, 32, 32), torch.get_rng_state(), net[0].switched
    given = images.clone()
    find_sections(net, images)
    pairs_by_hand(net, net, images, [(("2.relu", "2.layer1"), ("2.relu", "2.layer1"))])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == flags
    assert net[0].switched == switched
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(images, given)
    assert not images.requires_grad
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * (len(list(net.parameters())) - 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_network_is_unchanged_after_a_failure():
    net = create("resnet8").train()
    with pytest.raises(NetworkError, match=r"ResNet cannot take images of shape \(5, 32, 32\).*RuntimeError.*channels"):
        find_sections(net, (5, 32, 32))
    assert all(module.training and not module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("wrap", [torch.no_grad, torch.inference_mode])
def test_works_inside_no_grad_and_for_a_frozen_network(wrap):
    net = create("resnet8").requires_grad_(False)
    with wrap():
        assert sizes(find_sections(net, torch.rand(1, 3, 32, 32))) == [32, 16, 8]


def test_works_on_meta_in_half_precision_compiled_and_wrapped():
    expected = taps(find_sections(create("resnet14"), (3, 32, 32)))
    with torch.device("meta"):
        meta = create("resnet14")
    assert taps(find_sections(meta, (2, 3, 32, 32))) == expected
    assert taps(find_sections(meta, torch.rand(2, 3, 32, 32))) == expected
    assert taps(find_sections(create("resnet14"), torch.rand(2, 3, 32, 32, device="meta"))) == expected
    assert taps(find_sections(create("resnet14").bfloat16(), torch.rand(3, 32, 32))) == expected
    assert taps(find_sections(create("resnet14"), torch.zeros(3, 32, 32, dtype=torch.uint8))) == expected
    assert taps(find_sections(nn.DataParallel(create("resnet14")), (3, 32, 32))) == expected
    assert taps(find_sections(torch.compile(create("resnet14"), backend="eager"), (3, 32, 32))) == expected
    inside = create("resnet14")
    inside.layer2.compile(backend="eager")
    assert taps(find_sections(inside, (3, 32, 32))) == expected


@pytest.mark.parametrize("shape", [(32, 32), (1, 2, 3, 32, 32), (3, 0, 32)])
def test_an_example_of_another_shape_is_refused(shape):
    with pytest.raises(NetworkError, match=r"Expected images \(B, C, H, W\) or a shape"):
        find_sections(create("resnet8"), shape)
