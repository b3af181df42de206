"""Networks from a user's own file, and files written wholly or not at all."""

import sys
import textwrap

import pytest
import torch

from flowstill.errors import NetworkError
from flowstill.files import atomic_write
from flowstill.nets import create, needs_trust

MINE = """
    import dataclasses
    from torch import nn

    @dataclasses.dataclass
    class Options:
        hidden: int = 4

    class Net(nn.Module):
        def __init__(self, num_classes, in_channels=3, hidden=Options().hidden):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, hidden, 3)
            self.fc = nn.Linear(hidden, num_classes)

        def forward(self, x):
            return self.fc(self.conv(x).mean((2, 3)))

    def make_small(num_classes, hidden=2):
        return Net(num_classes, hidden=hidden)

    def make_any(**options):
        return Net(**options)

    def make_plain():
        return Net(10)

    def make_broken(num_classes):
        values = []
        return values[num_classes]

    def make_number(): return 3
    def make_class(): return Net
    def make_lazy(): return nn.LazyLinear(3)
    def make_with(depth, num_classes=10): return Net(depth)
    def leave(): raise SystemExit("bye")
    value = 5
"""


def line_of(text):
    return next(number for number, line in enumerate(MINE.splitlines(), start=1) if text in line)


@pytest.fixture
def mine(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(MINE))
    return file


@pytest.mark.parametrize(
    ("factory", "arguments", "channels", "classes", "hidden"),
    [
        ("Net", {"num_classes": 5, "in_channels": 1}, 1, 5, 4),
        ("make_small", {"num_classes": 5}, 3, 5, 2),
        ("make_small", {"num_classes": 5, "hidden": 7}, 3, 5, 7),
        ("make_any", {"num_classes": 5, "in_channels": 2, "hidden": 7}, 2, 5, 7),
        ("make_plain", {}, 3, 10, 4),
        ("make_with", {"depth": 6}, 3, 6, 4),
    ],
)
def test_factory_gets_what_its_signature_takes(mine, factory, arguments, channels, classes, hidden):
    network = create(f"{mine}:{factory}", **arguments)
    assert network.conv.weight.shape == (hidden, channels, 3, 3)
    assert network.fc.out_features == classes


def test_the_file_is_read_again_each_time_and_leaves_no_cache(mine):
    assert create(f"{mine}:make_plain").fc.out_features == 10
    mine.write_text(mine.read_text().replace("Net(10)", "Net(11)"))
    assert create(f"{mine}:make_plain").fc.out_features == 11
    assert list(mine.parent.iterdir()) == [mine]
    assert "mine" not in sys.modules


def test_factory_on_meta(mine):
    with torch.device("meta"):
        assert all(p.is_meta for p in create(f"{mine}:Net", 5).parameters())
    mine.write_text(
        mine.read_text() + "\ndef make_by_value(): return Net(int(torch.ones(3).sum().item()))\nimport torch\n"
    )
    with torch.device("meta"):
        network = create(f"{mine}:make_by_value")
    assert network.fc.out_features == 3
    assert all(p.is_meta for p in network.parameters())


LOADS = """
    import functools
    from pathlib import Path
    import torch
    from torch import nn

    SCALE = torch.tensor([2.0])
    FILE = Path(__file__).with_name("w.pth")

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.scales = [torch.ones(2)]

        def forward(self, x):
            return super().forward(x) * self.scales[0]

    def make():
        network = Scaled()
        network.load_state_dict(torch.load(FILE))
        assert torch.equal(network.weight, torch.load(FILE)["weight"])
        network.weight.requires_grad_(False)
        return network

    def make_assigned():
        network = Scaled()
        network.load_state_dict(torch.load(FILE), assign=True)
        return network

    def make_by_data():
        network = Scaled()
        for name, tensor in torch.load(FILE).items():
            getattr(network, name).data = tensor
        return network

    def make_scaled():
        network = make()
        network.weight.mul_(SCALE / 2)
        return network

    @functools.cache
    def make_once():
        return make()

    def make_cached():
        network, file = Scaled(), FILE.with_name("cache.pth")
        if not file.exists():
            torch.save(make().state_dict(), file)
        network.load_state_dict(torch.load(file))
        return network
"""


@pytest.mark.parametrize(
    "factory", ["make", "make_assigned", "make_by_data", "make_scaled", "make_once", "make_cached"]
)
@pytest.mark.filterwarnings("error")
def test_factories_that_load_their_own_weights_first_on_meta(factory, tmp_path):
    (tmp_path / "loads.py").write_text(textwrap.dedent(LOADS))
    state = torch.nn.Linear(3, 2).state_dict()
    torch.save(state, tmp_path / "w.pth")
    drawn = torch.get_rng_state()
    with torch.device("meta"):
        empty = create(f"{tmp_path / 'loads.py'}:{factory}")
        assert empty(torch.ones(1, 3)).is_meta
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    network = create(f"{tmp_path / 'loads.py'}:{factory}")
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in network.parameters()]
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("factory", "arguments", "what"),
    [
        ("make_smal", {}, "does not define 'make_smal'. Did you mean 'make_small'"),
        ("value", {}, "no function but a value of the name 'value'"),
        ("make_small", {"num_classes": 5, "hiden": 2}, "has no option 'hiden'. Did you mean 'hidden'"),
        ("make_plain", {"hidden": 2}, "has no option 'hidden'. It takes no options"),
        ("make_with", {}, "needs 'depth': give it as an option"),
        ("Net", {}, "needs 'num_classes'"),
        ("make_number", {}, "expected a torch.nn.Module. It returned a int"),
        ("make_class", {}, "expected a torch.nn.Module. It returned the class Net"),
        ("make_lazy", {}, "'weight' has no size yet"),
        (
            "make_broken",
            {"num_classes": 3},
            f"make_broken failed: .*mine.py:{line_of('return values')}: IndexError: list",
        ),
        ("leave", {}, f"mine.py:{line_of('def leave')}: SystemExit: bye"),
    ],
)
def test_bad_factories_give_one_clear_error(mine, factory, arguments, what):
    with pytest.raises(NetworkError, match=what):
        create(f"{mine}:{factory}", **arguments)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x = 1\ny = 1 / 0\n", r"mine.py:2: ZeroDivisionError"),
        ("x = 1\ndef broken(:\n", r"mine.py:2: SyntaxError"),
        ("import no_such_thing\n", r"mine.py:1: ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_files_that_cannot_be_imported(mine, text, what):
    mine.write_text(text)
    with pytest.raises(NetworkError, match=f"cannot be imported: .*{what}"):
        create(f"{mine}:make")


def test_missing_file(mine):
    with pytest.raises(NetworkError, match=r"Did you mean 'mine.py'"):
        create(f"{mine.parent}/mien.py:make")
    with pytest.raises(NetworkError, match=r"No file '.*no/mine.py'. Check the path"):
        create(f"{mine.parent}/no/mine.py:make")


def test_only_names_with_a_file_need_trust():
    assert needs_trust("a/b.py:make")
    assert needs_trust("C:\\nets\\b.py:make")
    assert not any(map(needs_trust, ("resnet8", "timm:resnet18", "torchvision:vgg11", "a/b.py")))


def test_atomic_write_replaces_the_file_or_leaves_it_unchanged(tmp_path):
    file = tmp_path / "file"
    atomic_write(file, b"one")
    atomic_write(str(file), lambda path: path.write_text("two"))
    assert file.read_text() == "two"

    def fails(path):
        path.write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        atomic_write(file, fails)
    with pytest.raises(OSError, match="No such file"):
        atomic_write(tmp_path / "no" / "file", b"")
    assert file.read_text() == "two"
    assert list(tmp_path.iterdir()) == [file]
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode
