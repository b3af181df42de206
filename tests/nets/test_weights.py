"""Weights in files: what is read, what is refused, what is written."""

import os
import pickle

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets import ResNet, create, load_weights, read_weights, save_weights


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def as_safetensors(state, path):
    save_weights(state, path)


@pytest.mark.parametrize("save", [as_safetensors, torch.save])
@pytest.mark.parametrize("wrap", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_come_back(save, wrap, tmp_path):
    source, target = ResNet(8), ResNet(8)
    source(torch.randn(4, 3, 8, 8))  # BatchNorm's statistics too
    save({wrap + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "w")
    assert load_weights(target, tmp_path / "w") == []
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("keys", [("state_dict",), ("model",), ("student",), ("model", "state_dict")])
def test_weights_within_a_checkpoint(keys, tmp_path):
    source = ResNet(8)
    content = source.state_dict()
    for key in reversed(keys):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), source.state_dict())
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.pth"), source.state_dict())


def test_two_saves_give_the_same_bytes_whatever_the_order_and_layout(tmp_path):
    state = ResNet(8).state_dict()
    save_weights(state, tmp_path / "a")
    save_weights({k: state[k] for k in reversed(state)}, tmp_path / "b")
    spread = {k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in state.items()}
    save_weights(spread, tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_tied_and_sliced_tensors_are_saved(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    network[0].bias = nn.Parameter(torch.arange(8.0)[::2])
    save_weights(network, tmp_path / "w")
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    other[1].weight = other[0].weight
    assert load_weights(other, tmp_path / "w") == []
    assert same(other.state_dict(), network.state_dict())


def test_unsavable_values_are_refused(tmp_path):
    with torch.device("meta"):
        network = ResNet(8)
    with pytest.raises(NetworkError, match=r"'conv1.weight' is a meta tensor"):
        save_weights(network, tmp_path / "w")
    assert not os.listdir(tmp_path)


def test_non_tensors_are_saved_beside_the_tensors_or_left_out(tmp_path, caplog):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return self.extra

        def set_extra_state(self, state):
            self.extra = state

    for number, extra in enumerate([None, {"scales": [1.5, torch.ones(2)]}, torch.arange(3)]):
        network, other = Extra(2, 2), Extra(2, 2)
        network.extra, other.extra = extra, torch.zeros(1)
        save_weights(network, tmp_path / f"{number}")
        load_weights(other, tmp_path / f"{number}")
        assert str(other.extra) == str(extra)
        assert torch.equal(other.weight, network.weight)
        assert read_weights(tmp_path / f"{number}").keys() == network.state_dict().keys() - (
            set() if isinstance(extra, torch.Tensor) else {"_extra_state"}
        )
    assert not caplog.text
    network.extra = other.extra = lambda: 1
    save_weights(network, tmp_path / "w")
    assert "'_extra_state' is left out: a function is more than tensors" in caplog.text
    load_weights(other, tmp_path / "w")
    assert other.extra is network.extra


@pytest.mark.parametrize("form", ["checkpoint", "old checkpoint", "pickle", "within", "named safetensors"])
def test_malicious_pickle_is_refused_and_not_run(form, tmp_path):
    mark, file = tmp_path / "ran", tmp_path / ("w.safetensors" if "safetensors" in form else "w.pth")
    payload = Payload(mark)
    if form == "pickle":
        file.write_bytes(pickle.dumps(payload))
    elif form == "within":
        torch.save({"state_dict": ResNet(8).state_dict(), "epoch": payload}, file)
    else:
        torch.save(payload, file, _use_new_zipfile_serialization="old" not in form)
    with pytest.raises(NetworkError, match=r"was not loaded, as it could run code.*safetensors"):
        create("resnet8", weights=file)
    assert not mark.exists()
    with file.open("rb") as opened:
        pickle.load(opened) if form == "pickle" else torch.load(opened, weights_only=False)
    assert mark.exists()  # the payload was a real one


def test_python_objects_in_a_checkpoint_are_named(tmp_path):
    torch.save({"state_dict": ResNet(8).state_dict(), "best": Payload("")}, tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"it holds posix.mkdir, not only tensors"):
        read_weights(tmp_path / "w.pth")
    torch.save(ResNet(8), tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"it holds flowstill.nets.resnet.ResNet, not only tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "kind", ["random", "text", "half a zip", "half safetensors", "short safetensors", "tensor short"]
)
def test_damaged_files(kind, tmp_path):
    file = tmp_path / "w"
    save_weights(ResNet(8), tmp_path / "good.safetensors")
    torch.save(ResNet(8).state_dict(), tmp_path / "good.pth")
    tensors, zipped = (tmp_path / "good.safetensors").read_bytes(), (tmp_path / "good.pth").read_bytes()
    noise = torch.randint(0, 128, (999,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    content = {
        "random": noise.numpy().tobytes(),
        "text": b"not weights at all\n" * 9,
        "half a zip": zipped[: len(zipped) // 2],
        "half safetensors": tensors[: len(tensors) // 2],
        "short safetensors": tensors[:100],
        "tensor short": tensors[:-1],
    }
    file.write_bytes(content[kind])
    with pytest.raises(NetworkError, match=f"{file} is not a checkpoint, or is damaged"):
        read_weights(file)


@pytest.mark.parametrize(
    ("content", "what"),
    [([1, 2], "a list"), ({"epoch": 3}, "a dict of 'epoch'"), ({}, "a dict of nothing"), (torch.zeros(2), "a Tensor")],
)
def test_checkpoints_without_a_state_dict(content, what, tmp_path):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=f"expected a state dict.*Received: {what}"):
        read_weights(tmp_path / "w.pth")


def test_missing_and_empty_files(tmp_path):
    (tmp_path / "teacher.safetensors").touch()
    with pytest.raises(NetworkError, match=r"teacher.safetensors is empty"):
        read_weights(tmp_path / "teacher.safetensors")
    with pytest.raises(NetworkError, match=r"did you mean 'teacher.safetensors', in the same folder"):
        read_weights(tmp_path / "techer.safetensors")
    with pytest.raises(NetworkError, match="there is no folder"):
        read_weights(tmp_path / "no" / "w.pth")
    with pytest.raises(NetworkError, match="it is a folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["resnet8", "timm:mobilenetv3_small_050", "torchvision:squeezenet1_1"])
def test_head_of_another_number_of_classes_stays_fresh(name, tmp_path, caplog):
    source = create(name, 6)
    save_weights(source, tmp_path / "w")
    caplog.clear()
    target = create(name, 4)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    notices = load_weights(target, tmp_path / "w")
    assert len(notices) == 1
    assert "has 6 classes, the network 4; the head starts from fresh weights" in notices[0]
    assert [record.getMessage() for record in caplog.records] == notices
    for key, value in target.state_dict().items():
        head = value.shape != source.state_dict()[key].shape
        assert torch.equal(value, before[key] if head else source.state_dict()[key])
    assert create(name, weights=tmp_path / "w")(torch.zeros(2, 3, 64, 64)).shape == (2, 6)  # the file's own number


def test_weights_of_another_network(tmp_path):
    network = ResNet(8)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    file = tmp_path / "w"
    renamed = {k.replace("fc.weight", "fc.weigth"): v for k, v in ResNet(8).state_dict().items()}
    linears = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    cases = [
        (ResNet(8, width=2).state_dict(), r"'conv1.weight' is \(32, 3, 3, 3\) there and \(16, 3, 3, 3\) here"),
        (ResNet(14).state_dict(), "the network has no 'layer1.1.bn1.bias'.*and 33 more"),
        (renamed, "it lacks 'fc.weight'; the network has no 'fc.weigth' .is it 'fc.weight'"),
        (linears.state_dict(), "No name matches"),
    ]
    for state, what in cases:
        save_weights(state, file)
        with pytest.raises(NetworkError, match=rf"w does not fit ResNet: .*{what}"):
            load_weights(network, file)
    assert same(network.state_dict(), before)
    save_weights(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), file)  # a hidden size is no head
    with pytest.raises(NetworkError, match=r"'0.weight' is \(5, 4\) there and \(3, 4\) here"):
        load_weights(linears, file)


def test_old_checkpoints_without_batch_counts(tmp_path):
    state = ResNet(8).state_dict()
    save_weights({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w")
    network = ResNet(8)
    load_weights(network, tmp_path / "w")
    assert same(network.state_dict(), state)


@pytest.mark.parametrize("save", [as_safetensors, torch.save])
def test_on_meta_names_and_shapes_are_checked(save, tmp_path):
    save(ResNet(8).state_dict(), tmp_path / "w")
    with torch.device("meta"):
        assert all(p.is_meta for p in create("resnet8", weights=tmp_path / "w").parameters())
        with pytest.raises(NetworkError, match="does not fit"):
            create("resnet14", weights=tmp_path / "w")


def test_a_weights_file_replaces_the_download(tmp_path):
    source = create("timm:mobilenetv3_small_050", 3)
    save_weights(source, tmp_path / "w")
    network = create("timm:mobilenetv3_small_050", 3, weights=tmp_path / "w", pretrained=True)
    assert same(network.state_dict(), source.state_dict())
