"""Devices by name: what people type instead is understood well enough to suggest the right one."""

import os

import pytest
import torch

from flowstill.engine.hardware import choose_device
from flowstill.errors import RecipeError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("gpu", "cuda"), ("GPU", "cuda"), ("nvidia", "cuda"), ("metal", "mps"), ("Apple", "mps"), ("cdua", "cuda")],
)
def test_an_unknown_device_suggests_the_nearest(typed, meant):
    with pytest.raises(RecipeError, match=rf"Received: '{typed}'\. Did you mean '{meant}'\?$"):
        choose_device(typed)


def test_an_unavailable_device_lists_what_is_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(RecipeError, match=r"device='cuda': not available .* Use 'cpu'"):
        choose_device("cuda")


def test_more_devices_than_available_are_refused():
    most = os.cpu_count() or 1
    assert choose_device("cpu", most) == "cpu"
    for devices in (0, most + 1):
        with pytest.raises(RecipeError, match=rf"devices={devices}: expected 1 to {most}, the number of cpu devices"):
            choose_device("cpu", devices)
