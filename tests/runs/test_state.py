"""The state to resume from: damage is detected, and the previous state is kept as a fallback."""

import errno
import os
import random

import pytest
import torch

from flowstill.errors import RunError
from flowstill.runs import RunWriter, Summary
from support.damage import flip, largest_file

WHOLE = {"summary": Summary().to_json(), "metrics": 0, "group": [], "stage": 0, "seconds": 0.0, "rng": []}


def state(step: int) -> dict:
    return {"step": step, "w": torch.full((2000,), float(step)), "rng": [torch.get_rng_state()]}


@pytest.fixture
def writer(tmp_path):
    return RunWriter.create(tmp_path / "run")


def test_every_flipped_bit_is_noticed(writer):
    writer.save_state(state(1))
    path = writer.path / "state.pt"
    size, drawn = path.stat().st_size, random.Random(0)
    places = [0, size // 2, size - 1, size - 40, *(drawn.randrange(size) for _ in range(46))]
    for place in places:
        bit = drawn.randrange(8)
        flip(path, place, bit)
        with pytest.raises(RunError, match=r"Cannot resume from .*state\.pt"):
            writer.load_state()
        flip(path, place, bit)
        assert writer.load_state()["step"] == 1


def test_a_cut_at_any_length_is_noticed(writer):
    writer.save_state(state(1))
    path = writer.path / "state.pt"
    whole = path.read_bytes()
    for length in (0, 1, 49, len(whole) // 2, len(whole) - 50, len(whole) - 49, len(whole) - 48, len(whole) - 1):
        path.write_bytes(whole[:length])
        if length == len(whole) - 49:  # without the checksum it is a file of an earlier version, and nothing is lost
            assert writer.load_state()["step"] == 1
        else:
            with pytest.raises(RunError, match="Cannot resume"):
                writer.load_state()


@pytest.mark.parametrize("lazy", [False, True])
def test_the_previous_state_replaces_a_damaged_one(writer, caplog, lazy):
    for step in (1, 2, 3):
        writer.save_state(state(step))
    assert sorted(path.name for path in writer.path.iterdir()) == ["state-previous.pt", "state.pt"]
    writer.leave_damaged_state()
    assert writer.load_state(lazy=lazy)["step"] == 3
    assert not caplog.messages
    flip(writer.path / "state.pt", 1000)
    assert writer.load_state(lazy=lazy)["step"] == 2
    writer.leave_damaged_state()
    (message,) = caplog.messages
    assert "state.pt' is damaged" in message
    assert "its checksum differs" in message
    assert [path.name for path in writer.path.iterdir()] == ["state.pt"]
    assert torch.equal(writer.load_state(lazy=lazy)["w"], torch.full((2000,), 2.0))


def test_two_damaged_states_are_both_named_with_the_fix(writer):
    for step in (1, 2):
        writer.save_state(state(step))
    for name in ("state.pt", "state-previous.pt"):
        flip(writer.path / name, 1000)
    writer.leave_damaged_state()  # leaves them
    with pytest.raises(
        RunError, match=r"state\.pt.*so is .*state-previous\.pt.*delete 'state\.pt' and 'state-previous"
    ):
        writer.load_state()


def test_a_kill_between_the_two_renames_is_not_damage(writer, caplog):
    for step in (1, 2):
        writer.save_state(state(step))
    (writer.path / "state.pt").unlink()
    writer.leave_damaged_state()
    assert writer.load_state()["step"] == 1
    assert not caplog.messages
    writer.save_state(state(2))
    assert writer.load_state()["step"] == 2
    writer.drop_state()
    assert list(writer.path.iterdir()) == []


def test_a_state_from_an_earlier_version_is_read(writer):
    torch.save(state(4), writer.path / "state.pt")
    assert writer.load_state()["step"] == 4
    writer.save_state(state(5))
    flip(writer.path / "state.pt", 1000)
    assert writer.load_state()["step"] == 4


def test_a_full_disk_is_reported_and_keeps_the_last_state(writer):
    writer.save_state(state(1))
    before = sorted(path.name for path in writer.path.iterdir())
    for size in (200, 5000):
        with largest_file(size), pytest.raises(OSError, match=r"state\.pt") as error:
            writer.save_state(state(2))
        assert error.value.errno == errno.EFBIG
        assert os.path.basename(error.value.filename) == "state.pt"
        assert writer.load_state()["step"] == 1
        assert sorted(path.name for path in writer.path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"summary": None}, "'summary' is of type NoneType"),
        ({"summary": "[]"}, "summary in state.pt"),
        ({"metrics": "3"}, "'metrics' is of type str"),
        ({"group": "student"}, "'group' is of type str"),
        ({"group": [3], "loop": {"step": 1}}, "'group' is of type list"),
        ({"group": ["student"]}, "'loop' is missing"),
        ({"group": ["student"], "loop": {}}, "'loop' is of type dict"),
        ({"stage": 1.5}, "'stage' is of type float"),
        ({"rng": ...}, "'rng' is missing"),
    ],
)
def test_an_incomplete_state_says_what_is_missing(writer, change, said):
    content = {**WHOLE, **change}
    writer.save_state({name: value for name, value in content.items() if value is not ...})
    with pytest.raises(RunError, match=said):
        writer.progress()


def test_the_smallest_complete_state_is_valid(writer):
    writer.save_state({**WHOLE, "group": ["a", "b"], "stage": 1, "loop": {"step": 7}})
    progress = writer.progress()
    assert (progress.begun, progress.stage, progress.step) == (("a", "b"), 1, 7)
