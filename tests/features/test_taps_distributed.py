"""Taps under DistributedDataParallel and DataParallel, in either order."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from flowstill.errors import TapError
from flowstill.features.taps import Tapped
from support.tap_networks import all_used, assert_same, hook_count, images

TAPS = ["steps.1", "steps.3:input"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: DistributedDataParallel(Tapped(network, TAPS)),
        lambda network: Tapped(DistributedDataParallel(network), TAPS),
        lambda network: DistributedDataParallel(Tapped(network, TAPS), find_unused_parameters=True),
        lambda network: Tapped(DistributedDataParallel(network, find_unused_parameters=True), TAPS),
        lambda network: DataParallel(Tapped(network, TAPS)),
        lambda network: Tapped(DataParallel(network), TAPS),
    ],
)
def test_ddp_reads_and_trains_alike_in_either_order(wrap):
    network, x = all_used(), images()
    wrapped, bare = wrap(network), copy.deepcopy(network)
    for _ in range(3):
        readings = []
        for model, module in ((wrapped, network), (Tapped(bare, TAPS), bare)):
            module.zero_grad()
            readings.append(model(x))
            (readings[-1].logits.square().sum() + readings[-1]["steps.1"].square().sum()).backward()
        assert_same(*readings)
        for found, expected in zip(network.parameters(), bare.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)
    assert hook_count(network) == 0


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("until", ["logits", "taps"])
def test_ddp_finds_what_a_loss_on_the_maps_leaves_unused(until):
    network, x = all_used(), images()
    model = DistributedDataParallel(Tapped(network, TAPS, until), find_unused_parameters=True)
    for _ in range(3):
        network.zero_grad()
        model(x)["steps.1"].square().sum().backward()
    assert network.steps[1].weight.grad is not None
    assert network.head[2].weight.grad is None
    Tapped(bare := copy.deepcopy(network), TAPS)(x)["steps.1"].square().sum().backward()
    torch.testing.assert_close(bare.steps[0].weight.grad, network.steps[0].weight.grad)


@pytest.mark.usefixtures("process_group")
def test_a_stop_inside_ddp_is_refused_only_where_gradients_would_be_lost():
    network, x = all_used(), images()
    wrapped = DistributedDataParallel(network)
    tapped = Tapped(wrapped, TAPS, "taps")
    expected = Tapped(network, TAPS, "taps")(x)
    with pytest.raises(TapError, match=r"cannot stop.*DistributedDataParallel\(Tapped\(network\)\)"):
        tapped(x)
    with torch.no_grad():
        assert_same(tapped(x), expected)
    with wrapped.no_sync():
        tapped(x)["steps.1"].sum().backward()
    wrapped(x).sum().backward()
    wrapped(x).sum().backward()
    assert hook_count(network) == 0


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("inside", [False, True])
def test_ddp_and_compile_together(inside):
    torch.compiler.reset()
    network, x = all_used(), images()
    tapped = Tapped(network, TAPS)
    if inside:
        model = DistributedDataParallel(torch.compile(tapped, backend="eager"))
    else:
        model = torch.compile(DistributedDataParallel(tapped), backend="eager")
    expected = Tapped(bare := copy.deepcopy(network), TAPS)(x)
    expected.logits.sum().backward()
    for _ in range(2):
        network.zero_grad()
        reading = model(x)
        assert_same(reading, expected)
        reading.logits.sum().backward()
    for found, parameter in zip(network.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(found.grad, parameter.grad)


TWO_PROCESSES = """
import sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from flowstill.features.taps import Tapped

rank, order, until, store, out = int(sys.argv[1]), *sys.argv[2:]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
state, images = torch.load(f"{out}/start.pt")
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
network.load_state_dict(state)
if order == "outside":
    model = DistributedDataParallel(Tapped(network, ["1"], until), find_unused_parameters=until == "taps")
else:
    model = Tapped(DistributedDataParallel(network), ["1"], until)
for _ in range(2):
    network.zero_grad()
    reading = model(images[rank::2])
    loss = reading["1"].square().mean() + (0 if reading.logits is None else reading.logits.square().mean())
    loss.backward()
torch.save([p.grad for p in network.parameters()], f"{out}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("order", "until"), [("outside", "logits"), ("outside", "taps"), ("inside", "logits")])
def test_two_processes_have_the_gradient_of_one(tmp_path, order, until):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    x = images(batch=6)
    torch.save((network.state_dict(), x), tmp_path / "start.pt")
    (tmp_path / "ddp.py").write_text(TWO_PROCESSES)
    command = [sys.executable, str(tmp_path / "ddp.py")]
    workers = [
        subprocess.Popen([*command, str(rank), order, until, str(tmp_path / "store"), str(tmp_path)])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    y = network[:2](x)
    loss = y.square().mean() + (network[2:](y).square().mean() if until == "logits" else 0)
    loss.backward()
    for rank in range(2):
        for found, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), network.parameters(), strict=True):
            if parameter.grad is None:
                assert found is None
            else:
                torch.testing.assert_close(found, parameter.grad)
