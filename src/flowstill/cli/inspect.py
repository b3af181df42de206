"""``flowstill inspect``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from flowstill.cli.console import plain_table, show_table
from flowstill.cli.options import whole_number
from flowstill.errors import NetworkError, ShapeError

if TYPE_CHECKING:
    from torch import nn

    from flowstill.features.sections import Section
    from flowstill.features.shares import Shares

Shape = tuple[int, int, int]


def inspect(
    net: Annotated[
        str, typer.Argument(metavar="NET", help="resnet26, timm:NAME, torchvision:NAME or file.py:factory.")
    ],
    against: Annotated[
        str | None, typer.Option(metavar="NET", help="Student network to pair the sections with.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="224, 224x160 (HxW) or 1x28x28 (CxHxW).  [default: the network's]"),
    ] = None,
    classes: Annotated[int, typer.Option(parser=whole_number, metavar="N", help="Number of classes.")] = 10,
) -> None:
    """Show a network's sections and taps, its parameters and multiply-accumulates."""
    shape = parse_size(image_size) if image_size else default_shape(net)
    networks = {name: build(name, shape, classes) for name in filter(None, (net, against))}
    sections = {name: show_network(name, network, shape) for name, network in networks.items()}
    if against:
        show_pairs(net, sections[net], against, sections[against])


def show_network(net: str, network: nn.Module, shape: Shape) -> list[Section]:
    """Print the sections of a network, and return them."""
    from flowstill.features.sections import find_sections
    from flowstill.features.shares import find_shares
    from flowstill.nets import count

    counts = count(network, shape)
    print(f"{net}: {counts.parameters:,} parameters, {counts.macs / 1e6:,.2f} M MACs for {_by(shape)}")
    sections = find_sections(network, (2, *shape))
    shares = find_shares(network, sections, (1, *shape))
    columns = ("section", "size", "parameters", "entry", "CxHxW", "first block", "CxHxW", "exit", "CxHxW", "made by")
    table = plain_table(*columns)
    for number, section in enumerate(sections):
        share = _share(shares.sections[number], counts.parameters)
        table.add_row(str(number), _by(section.size), share, *_taps(section), section.kinds[-1])
    show_table(table)
    rest = {**shares.parts(), "in the classifier": shares.head}
    parts = (f"{_share(count, counts.parameters)} {place}" for place, count in rest.items() if count)
    print(f"parameters in no section: {', '.join(parts) or 'none'}")
    show_notices(sections, shares)
    print()
    return sections


def show_notices(sections: list[Section], shares: Shares) -> None:
    """Print notes on the sections."""
    if outside := shares.mostly_outside():
        print(f"note: {outside}. Name taps there ('flows' of a job), or use knowledge that reads no sections.")
    early = [str(number) for number, section in enumerate(sections) if section.activated_later]
    if early:
        print(
            f"note: in section {', '.join(early)} the exit lies before the last activation, which no tap can read: it is a "
            "function or works in place."
        )


def show_pairs(net: str, teacher: list[Section], against: str, student: list[Section]) -> None:
    """Print the paired sections of two networks, the unpaired ones, and whether FSP fits."""
    from flowstill.features.pairs import align_sections, alike, unlike, unpaired
    from flowstill.transfer.knowledge import KNOWLEDGE

    aligned = align_sections(teacher, student)
    pairs = alike(aligned)
    table = plain_table("pair", "size", net, "size", against)
    for number, pair in enumerate(pairs):
        sides = [text for section in (pair.teacher, pair.student) for text in (_by(section.size), _flow(section))]
        table.add_row(str(number), *sides)
    show_table(table)
    for name, sections in ((net, teacher), (against, student)):
        left = [f"{sections.index(section)} ({_by(section.size)})" for section in unpaired(sections, aligned)]
        if left:
            print(f"unpaired in {name}: section {', '.join(left)}")
    for sentence in unlike(pairs):
        print(f"note: the maps differ in kind, {sentence}")
    try:
        KNOWLEDGE.find("fsp")().build(pairs)
    except ShapeError as error:
        print(f"FSP does not fit: it {str(error).removeprefix('fsp ')}")
    else:
        print("FSP fits: both networks have the same channels at every tap.")


def build(net: str, shape: Shape, classes: int) -> nn.Module:
    """The network on the meta device, without memory for its weights."""
    import torch

    from flowstill.nets import create

    with torch.device("meta"):
        return create(net, classes, shape[0])


def parse_size(text: str) -> Shape:
    """Read an image's shape.

    Raises:
        NetworkError: not a shape.

    Example:
        >>> parse_size("32"), parse_size("224x160"), parse_size("1x28x28")
        ((3, 32, 32), (3, 224, 160), (1, 28, 28))
    """
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){0,2}", text):
        raise NetworkError(
            f"--image-size: expected 224, 224x160 (height x width) or 1x28x28 (channels first). Received: {text!r}."
        )
    numbers = [int(part) for part in text.split("x")]
    channels = numbers[0] if len(numbers) == 3 else 3
    return channels, numbers[-2] if len(numbers) > 1 else numbers[-1], numbers[-1]


def default_shape(net: str) -> Shape:
    """The input that a network was designed for: timm's own, 32 pixels for the CIFAR networks, otherwise 224."""
    origin, _, name = net.partition(":")
    if origin == "timm":
        import timm

        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if known is not None:
            channels, height, width = known.input_size
            return channels, height, width
    large = name or net.endswith("-imagenet") or net == "inception-bn"
    return (3, 224, 224) if large else (3, 32, 32)


def _by(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if part >= 0.0005 * whole else "<0.1%"


def _taps(section: Section) -> list[str]:
    """Entry, first block and exit, each with its shape."""
    points = (
        (section.entry, section.entry_shape),
        (section.first, section.first_shape),
        (section.exit, section.exit_shape),
    )
    return [text for tap, shape in points for text in (str(tap), _by(shape))]


def _flow(section: Section) -> str:
    return f"{section.entry} → {section.exit}"
