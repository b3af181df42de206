"""Runs a network once and reads its trunk off the graph that autograd records."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flowstill.errors import NetworkError
from flowstill.features.graph import walk
from flowstill.features.kinds import Kind, is_activation, is_product, kind_of
from flowstill.features.modules import Shape, is_scripted, shape_of, unwrapped
from flowstill.features.operations import Operations
from flowstill.features.recorder import Recorder, Vertex
from flowstill.features.taps import Reading, Tapped
from flowstill.features.trunk import Call, Convolution, Trunk, TrunkMap, octaves

Graph = dict[Vertex, list[Vertex]]  # vertex -> the vertices that it is made from, which come before it


def find_trunk(network: nn.Module, example: Tensor | Sequence[int]) -> Trunk:
    """Run ``network`` once in eval mode and read its trunk; the network is not changed.

    Args:
        example: images (B, C, H, W), or a shape (C, H, W) or (B, C, H, W). Network and example may be on ``meta``.

    Raises:
        NetworkError: the network cannot take the example, or no gradient leads from its output to the image.
    """
    network, images = unwrapped(network), example_images(network, example)
    if is_scripted(network):
        raise NetworkError(
            f"The inside of {type(network).__name__} cannot be read, since TorchScript calls no hooks; its sections cannot "
            "be found. Give the Python network, or use knowledge that reads logits only, such as kd."
        )
    recorder = Recorder({path: module for path, module in network.named_modules() if path})
    convolutions, operations = _Convolutions(), Operations()
    with undisturbed(network, images.device), recorder, operations, convolutions:
        source = images.detach().clone().requires_grad_().clone()  # twice: a network may write into its input
        start = get_gradient_edge(source)
        logits = read_once(Tapped(network), source).logits
    graph = {}
    if logits is not None and logits.requires_grad:
        end = get_gradient_edge(logits)
        graph = graph_between((start.node, start.output_nr), (end.node, end.output_nr))
    if not graph:
        raise NetworkError(
            f"No gradient leads from the output of {type(network).__name__} back to the image (it detaches, or runs "
            "under no_grad), so its sections cannot be found. Name the taps by hand: 'flows' of the job."
        )
    place = {vertex: index for index, vertex in enumerate(graph)}
    trunk = {place[vertex] for vertex in cuts(graph)}
    maps, calls = _trunk_maps(recorder, operations, place, trunk)
    activations = {
        place[vertex]: shape[1:]
        for vertex, shape in operations.shapes.items()
        if place.get(vertex) in trunk and is_activation(vertex[0])
    }
    passed = [operations.layout(vertex) for vertex in operations.shapes if place.get(vertex) in trunk]
    layouts = tuple(sorted({layout for layout in passed if layout}))
    found = convolutions.read(place, trunk)
    products = tuple(index for (node, _), index in place.items() if is_product(node))
    return Trunk((images.shape[2], images.shape[3]), maps, calls, found, activations, products, layouts)


def example_images(network: nn.Module, example: Tensor | Sequence[int]) -> Tensor:
    """``example`` as a batch on the network's device and in its dtype; zeros where only a shape is given.

    Raises:
        NetworkError: not a shape of images.
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    shape = tuple(example.shape) if isinstance(example, Tensor) else tuple(example)
    if len(shape) == 3:
        shape = (1, *shape)
    if len(shape) != 4 or min(shape) < 1:
        raise NetworkError(
            f"Expected images (B, C, H, W) or a shape (C, H, W) as the example. Received: shape {shape}."
        )
    if not isinstance(example, Tensor) or example.is_meta:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    return example.reshape(shape).to(like.device, like.dtype)


def read_once(tapped: Tapped, images: Tensor) -> Reading:
    """One reading with copies in place of the buffers, which a network may write to even in eval mode.

    Raises:
        TapError: from the taps.
        NetworkError: in place of anything else that the network raises.
    """
    reading: Reading = run_once(tapped, images)
    return reading


def run_once(network: nn.Module, images: Tensor) -> Any:
    """What the network returns, with copies in place of its buffers.

    Raises:
        NetworkError: in place of anything that the network raises, but for errors about taps.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        if any(map(is_scripted, network.modules())):  # their buffers cannot be replaced
            try:
                return network(images)
            finally:
                for name, buffer in network.named_buffers():
                    buffer.data.copy_(buffers[name])
        return torch.func.functional_call(network, buffers, (images,))
    except NetworkError:
        raise
    except Exception as error:
        raise cannot_take(network, images, error) from error


def cannot_take(network: nn.Module, images: Tensor, error: Exception) -> NetworkError:
    """The error for a network that failed on images."""
    network = network.network if isinstance(network, Tapped) else network
    said = (
        f"{type(network).__name__} cannot take images of shape {tuple(images.shape[1:])} (channels, "
        f"height, width). It says: {type(error).__name__}: {error}"
    )
    if isinstance(network, torch.fx.GraphModule) and "size()[0]" in str(error):
        said += (
            " It was exported for one batch size. Export it for any: torch.export.export(network, (images,), "
            "dynamic_shapes=({0: torch.export.Dim.AUTO},))."
        )
    return NetworkError(said)


@contextmanager
def undisturbed(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode, uncompiled, with gradients; training flags and random state are restored afterwards."""
    training = {module: module.training for module in network.modules() if hasattr(module, "training")}
    random = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with random, torch.compiler.set_stance("force_eager"), torch.inference_mode(False), torch.enable_grad():
        try:
            for module in training:
                module.training = False  # not .eval(), which a network may have overridden
            yield
        finally:
            for module, flag in training.items():
                module.training = flag


def graph_between(source: Vertex, last: Vertex) -> Graph:
    """The vertices from ``source`` to ``last``, each after all that it is made from; empty if no path connects them."""

    def parents_of(vertex: Vertex) -> list[Vertex]:
        return [] if vertex == source else [(n, i) for n, i in vertex[0].next_functions if n is not None]

    graph: Graph = {}
    for vertex, parents in walk(last, parents_of):
        leading = [parent for parent in parents if parent in graph]
        if leading or vertex == source:
            graph[vertex] = leading
    return graph


def cuts(graph: Graph) -> Iterator[Vertex]:
    """Vertices that every path passes through: in topological order, no edge spans them.

    Shortcuts, branches and gates span what lies beside them, so nothing inside a block qualifies.
    """
    uses = Counter(parent for parents in graph.values() for parent in parents)
    spanning = 0
    for vertex, parents in graph.items():
        spanning -= len(parents)
        if spanning == 0:
            yield vertex
        spanning += uses[vertex]


def _trunk_maps(
    recorder: Recorder, operations: Operations, place: dict[Vertex, int], trunk: set[int]
) -> tuple[tuple[TrunkMap, ...], tuple[Call, ...]]:
    """The trunk's maps, and the calls that put them out, of modules that ran exactly once."""
    begin: dict[str, int] = {}  # the last trunk map known when a module was called
    known = 0
    shapes: dict[int, Shape] = {}
    kinds: dict[int, Kind] = {}
    channels_last: set[int] = set()
    calls: dict[int, list[Call]] = {}
    feeds: dict[int, list[str]] = {}
    for event in recorder.events:
        index = place.get(event.vertex) if event.vertex is not None else None
        if index is not None and index in trunk:
            known = max(known, index)
        if event.at == "input":
            begin[event.path] = known
        if index is None or event.map is None or recorder.calls[event.path] > 1:
            continue
        readable = not event.overwritten
        if index not in kinds and event.vertex is not None:
            kinds[index] = kind_of(event.vertex[0])
            if operations.axis(event.vertex) == 3:
                channels_last.add(index)
        if index in channels_last:
            continue  # (B, H, W, C)
        shapes[index] = shape_of(event.map)
        if event.at == "output":
            parameters = recorder.modules[event.path].parameters()
            weights = sum(p.numel() > max(p.shape, default=1) for p in parameters)
            calls.setdefault(index, []).append(Call(event.path, begin[event.path], index, readable, weights))
        elif readable:
            feeds.setdefault(index, []).append(event.path)
    maps = []
    for index in sorted(shapes):
        # A module that passes its input through (a Dropout, an Identity) does not make the map.
        makers = tuple(call for call in calls.get(index, ()) if call.begin < index and call.readable)
        if makers or index in feeds:
            maps.append(TrunkMap(index, shapes[index], makers, tuple(feeds.get(index, ())), kinds[index]))
    on_trunk = [call for index in sorted(trunk & calls.keys()) for call in calls[index]]
    return tuple(_bridged(maps, trunk)), tuple(on_trunk)


def _bridged(maps: list[TrunkMap], trunk: set[int]) -> Iterator[TrunkMap]:
    """The maps on the trunk; where the next one is far smaller, also the outputs of the outermost modules between them.

    A network whose cells take the outputs of the two cells before (NASNet) has no trunk there, but its cells still
    follow each other. Where sizes go up and down in between (HRNet), nothing is added.
    """
    for one, other in itertools.pairwise([*(m for m in maps if m.index in trunk), None]):
        if one is not None:
            yield one
        if one is not None and other is not None and octaves(one.size, other.size) > 1.5:
            inside = {m.tap().path: m for m in maps if one.index < m.index < other.index and m.makers}
            outermost = [m for path, m in inside.items() if not any(path.startswith(f"{p}.") for p in inside)]
            sizes = [one.size, *(m.size for m in outermost), other.size]
            if all(a[0] >= b[0] and a[1] >= b[1] for a, b in itertools.pairwise(sizes)):
                yield from outermost


class _Convolutions(TorchFunctionMode):
    """Records every 2-D convolution, including functional ones."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Vertex, dict[str, Any], Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``; record a convolution's arguments and output."""
        output = func(*args, **(kwargs or {}))
        if func in (F.conv2d, F.conv_transpose2d) and output.requires_grad:
            edge = get_gradient_edge(output)
            given = dict(zip(("input", "weight", "bias", "stride"), args, strict=False)) | (kwargs or {})
            self.seen.append(((edge.node, edge.output_nr), given, output))
        return output

    def read(self, place: dict[Vertex, int], trunk: set[int]) -> tuple[Convolution, ...]:
        """The convolutions between image and logits, in order."""
        found = []
        for vertex, given, output in self.seen:
            if vertex in place:
                into, weight, stride = given["input"], given["weight"], given.get("stride", 1)
                size, moves = (output.shape[-2], output.shape[-1]), stride if isinstance(stride, int) else max(stride)
                found.append(
                    Convolution(
                        place[vertex],
                        size,
                        on_trunk=place[vertex] in trunk,
                        spatial=weight.shape[2:].numel() > 1,
                        depthwise=weight.shape[1] == 1 < into.shape[-3],
                        dense=size == (1, 1) != tuple(into.shape[-2:]) and moves == 1,
                    )
                )
        return tuple(sorted(found, key=lambda convolution: convolution.index))
