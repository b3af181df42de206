"""Networks registered from outside the package."""

import pytest
import torch
from torch import nn

import flowstill as fs
from flowstill.errors import NetworkError
from flowstill.nets import create, known_nets


def tiny(num_classes: int = 10, in_channels: int = 3, *, hidden: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(hidden, num_classes)
    )


def test_a_network_from_outside_is_built_and_trained_by_name(tmp_path):
    fs.register_network("tiny", about="one convolution")(tiny)
    assert known_nets()["tiny"] == "one convolution"
    assert create("tiny", num_classes=3, in_channels=1, hidden=6)[3].weight.shape == (3, 6)
    stage = fs.Stage(name="train", steps=2, lr=0.1, task="labels")
    job = fs.Job(network=fs.Net("tiny", {"hidden": 5}), stages=(stage,))
    fs.train(fs.Recipe("try", fs.Data("digits", batch=8), {"student": job}), out=tmp_path / "run")
    assert fs.Run.open(tmp_path / "run").student[0].weight.shape == (5, 1, 3, 3)
    assert fs.evaluate(tmp_path / "run")
    with torch.device("meta"):
        assert create("tiny")(torch.zeros(1, 3, 8, 8)).is_meta
    with pytest.raises(NetworkError, match=r"tiny has no option 'hiden'. Did you mean 'hidden'"):
        create("tiny", hiden=3)
    with pytest.raises(NetworkError, match=r"Unknown network 'tinny'. Did you mean 'tiny'"):
        create("tinny")
    with pytest.raises(NetworkError, match=r"Network 'tiny' failed: .*test_registry.py:\d+: RuntimeError"):
        create("tiny", hidden=-1)


@pytest.mark.parametrize("name", ["resnet14x2", "resnet15"])
def test_the_form_of_our_resnet_names_is_reserved(name):
    with pytest.raises(NetworkError, match="names of this form are CIFAR ResNets"):
        fs.register_network(name)(tiny)


def test_what_cannot_be_registered_is_refused():
    with pytest.raises(
        NetworkError, match=r"expected parameters 'num_classes' and 'in_channels'.*takes no 'in_channels'"
    ):
        fs.register_network("bad")(lambda num_classes: nn.Identity())
    with pytest.raises(NetworkError, match=r"already a network 'resnet8'"):
        fs.register_network("resnet8")(tiny)
    with pytest.raises(NetworkError, match=r"a name with a colon"):
        fs.register_network("timm:mine")(tiny)
    with pytest.raises(NetworkError, match=r"Expected a class or a function"):
        fs.register_network("bad")(3)
    fs.register_network("none")(lambda num_classes=1, in_channels=1: None)
    with pytest.raises(NetworkError, match=r"expected a torch.nn.Module. It returned a NoneType"):
        create("none")
