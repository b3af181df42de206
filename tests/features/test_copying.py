"""Networks are copied, whatever else they hold beside parameters."""

import copy
import logging
import math
import threading

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.features.copying import copied, fill_lazy, is_lazy


class Holding(nn.Module):
    """A linear layer that holds something more."""

    def __init__(self, **held) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.__dict__.update(held)

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: [m], lambda m: {"a": [(m, 1)]}], ids=["bare", "list", "nested"]
)
def test_kept_maps_are_copied_without_their_graph(wrap):
    network = Holding()
    kept = network(torch.rand(2, 4))
    network.kept = wrap(kept)
    twin = copied(network)
    found = twin.kept
    while not isinstance(found, torch.Tensor):
        found = found["a"] if isinstance(found, dict) else found[0]
    assert torch.equal(found, kept)
    assert found is not kept
    assert not found.requires_grad
    assert kept.grad_fn is not None
    assert all(p.requires_grad and p.is_leaf for p in twin.parameters())


def test_uncopyable_attributes_are_shared_and_others_are_not():
    lock, values = threading.Lock(), iter(range(3))
    network = Holding(options={"lock": lock, "sizes": [1, 2]}, values=(v for v in values), log=logging.getLogger("any"))
    twin = copied(network)
    assert twin.options["lock"] is lock
    assert twin.options["sizes"] == [1, 2]
    assert twin.options["sizes"] is not network.options["sizes"]
    assert twin.values is network.values
    assert twin.fc.weight is not network.fc.weight


def test_tied_weights_stay_tied():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    twin = copied(network)
    assert twin[1].weight is twin[0].weight is not network[0].weight


def test_a_copy_that_shares_the_weights_is_refused():
    class Single(Holding):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(NetworkError, match="Single cannot be copied: its __deepcopy__ returns something that shares"):
        copied(Single())


def test_a_failing_copy_names_the_cause():
    class Stubborn:
        def __deepcopy__(self, memo):
            raise ValueError("not me")

    class Refuses(Holding):
        def __deepcopy__(self, memo):
            raise TypeError("no copies")

    assert isinstance(copied(Holding(held=Stubborn())).held, Stubborn)
    with pytest.raises(NetworkError, match=r"Refuses cannot be copied.*copy\.deepcopy says: TypeError: no copies"):
        copied(Refuses())


def test_torchscript_is_copied_with_parameters_that_train():
    script = torch.jit.script(Holding().eval())
    script.fc.bias.requires_grad_(False)
    twin, x = copied(script), torch.rand(2, 4)
    assert [(p.is_leaf, p.requires_grad) for p in twin.parameters()] == [(True, True), (True, False)]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not twin(x).any()
    assert script(x).any()
    frozen = copied(torch.jit.freeze(torch.jit.script(Holding().eval())))
    assert frozen.training is False


def test_an_exported_module_gets_training_and_eval_modes():
    exported = torch.export.export(Holding().eval(), (torch.rand(2, 4),)).module()
    assert copied(exported).train().eval().training is False
    with pytest.raises(NotImplementedError):
        exported.eval()


def test_lazy_layers_get_their_sizes():
    network = nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    assert is_lazy(network)
    fill_lazy(network, (1, 8, 8))
    assert not is_lazy(network)
    assert [type(module) for module in network] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert network[3].in_features == 2 * 6 * 6
    assert network.training
    assert torch.equal(network[1].running_mean, torch.zeros(2))
    assert copy.deepcopy(network)(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(NetworkError, match=r"'unused\.weight' has no size yet"):
        fill_lazy(Holding(_modules={"fc": nn.Linear(8, 3), "unused": nn.LazyLinear(3)}), (1, 8, 8))


def test_a_python_module_as_an_attribute_is_shared():
    network = nn.Linear(2, 2)
    network.math = math
    assert copied(network).math is math
