"""Taps under torch.compile, in either order."""

import copy
from collections.abc import Iterator

import pytest
import torch

from flowstill.errors import TapError
from flowstill.features.taps import Tapped
from flowstill.nets.resnet import ResNet
from support.tap_networks import Steps, assert_same, hook_count, images, inplace_network

TAPS = ["steps.1", "steps.3:input"]

NEW_TORCH = torch.torch_version.TorchVersion(torch.__version__) >= (2, 15)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Graphs:
    """A backend that runs each graph as it is, and counts them and the convolutions in them."""

    def __init__(self) -> None:
        self.count = 0
        self.convolutions = 0

    def __call__(self, graph, example):
        self.count += 1
        self.convolutions += sum(node.target is torch.conv2d for node in graph.graph.nodes)
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch.compiler.reset()
    yield Graphs()
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("taps", "until", "convolutions"), [(TAPS, "logits", 5), (TAPS, "taps", 3), (["steps.0"], "steps.1", 2)]
)
def test_a_compiled_reading_is_one_graph(graphs, taps, until, convolutions):
    network, x = Steps(), images()
    compiled = torch.compile(Tapped(network, taps, until), backend=graphs)
    expected = Tapped(network, taps, until)(x)
    for _ in range(3):
        assert_same(compiled(x), expected)
    assert hook_count(network) == 0
    if NEW_TORCH:  # older ones break the graph where hooks are installed, and read the same maps
        assert (graphs.count, graphs.convolutions) == (1, convolutions)


@pytest.mark.parametrize("until", ["logits", "taps"])
def test_inside_with_the_whole_reading_compiles_without_a_break(graphs, until):
    tapped, x = Tapped(Steps(), TAPS, until), images()
    expected = tapped(x)
    compiled = torch.compile(tapped, backend=graphs, fullgraph=True)
    with tapped:
        for _ in range(3):
            assert_same(compiled(x), expected)
    assert graphs.count == 1


@pytest.mark.parametrize("until", ["logits", "taps"])
def test_a_compiled_network_is_read(graphs, until):
    network, x = Steps(), images()
    tapped = Tapped(torch.compile(network, backend=graphs), TAPS, until)
    for _ in range(3):
        assert_same(tapped(x), Tapped(network, TAPS, until)(x))
    assert graphs.count > 0
    assert hook_count(network) == 0


@pytest.mark.parametrize("inside", [False, True])
def test_several_taps_objects_on_one_network_compile(graphs, inside):
    network, x = Steps(), images()
    shared = torch.compile(network, backend=graphs)
    choices = [["steps.0", "steps.1"], ["steps.1", "steps.2"], ["steps.2", "steps.1"]]
    tapped = [Tapped(shared if inside else network, taps) for taps in choices]
    compiled = tapped if inside else [torch.compile(t, backend=graphs) for t in tapped]
    for _ in range(2):
        for taps, read in zip(choices, compiled, strict=True):
            assert_same(read(x), Tapped(network, taps)(x))
    assert 0 < graphs.count <= len(choices)
    assert hook_count(network) == 0


def test_a_network_compiled_without_taps_says_so(graphs):
    network, x = Steps(), images()
    compiled = torch.compile(network, backend=graphs)
    compiled(x)
    with pytest.raises(TapError, match=r"'steps\.1' was not reached: the network is compiled.*Tapped\(network"):
        Tapped(compiled, TAPS)(x)
    assert_same(torch.compile(Tapped(network, TAPS), backend=graphs)(x), Tapped(network, TAPS)(x))


def test_compiled_maps_are_safe_from_overwriting(graphs):
    network, x = inplace_network().eval(), images()
    reading = torch.compile(Tapped(network, ["bn2"]), backend="aot_eager")(x)
    torch.testing.assert_close(reading["bn2"], network.bn2(network.bn1(x)))


def test_an_ambiguous_tap_is_refused_when_compiled(graphs):
    network = Steps()
    with pytest.raises(TapError, match="'act' is ambiguous"):
        torch.compile(Tapped(network, ["act"]), backend=graphs)(images())
    assert hook_count(network) == 0


@pytest.mark.slow
@pytest.mark.parametrize("until", ["logits", "taps"])
def test_inductor_trains_as_eager_does(until):
    torch.compiler.reset()
    network, x = ResNet(8).train(), images(16)
    bare = copy.deepcopy(network)
    taps = ["layer1", "layer2.0:input", "layer3"]
    compiled = torch.compile(Tapped(network, taps, until), backend="inductor")
    for _ in range(2):
        for model, module in ((compiled, network), (Tapped(bare, taps, until), bare)):
            module.zero_grad()
            reading = model(x)
            # Every output has a part in the loss: a compiled graph gives zeros, not None, where one has none.
            outputs = [*reading.maps.values(), *([reading.logits] if until == "logits" else [])]
            sum(output.square().mean() for output in outputs).backward()
    for found, expected in zip(network.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
    for found, expected in zip(network.buffers(), bare.buffers(), strict=True):
        torch.testing.assert_close(found, expected)
