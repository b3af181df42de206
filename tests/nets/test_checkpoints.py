"""Checkpoints as training scripts and hubs write them: what is read, and which network is chosen."""

import argparse
import collections
import datetime
import json
import logging
import pathlib
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets import ResNet, create, load_weights, read_weights, save_weights


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def renamed_globals(path, old, new):
    """Write the file as another version of Python or numpy would, whose classes stand in other modules."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data.replace(b"c" + old, b"c" + new))
        assert any(b"c" + new in archive.read(name) for name in entries)


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), betas=(0.9, 0.99)),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "numpy numbers": [np.float64(91.2), np.float32(1), np.int64(3), np.bool_(True), np.str_("a"), np.float16(2)],
    "numpy arrays": [np.arange(6.0).reshape(2, 3).T, np.array(["a", None], dtype=object), np.random.get_state()],
    "numpy types": [np.dtype("float32"), np.float32],
    "history": collections.defaultdict(list, loss=[1.0, 0.5]),
    "recent": collections.deque([1, 2], maxlen=3),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("ab"),
    "windows path": pathlib.PureWindowsPath("a"),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "torch": [torch.__version__, torch.device("cuda:1"), torch.float16, torch.Size([1])],
    "plain": [frozenset([1]), slice(1), 2**70, b"bytes", 1 + 2j, {1, 2}],
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_beside_the_weights(kind, zipped, tmp_path):
    state = ResNet(8).state_dict()
    content = {"state_dict": state, "beside": BESIDE[kind], "optimizer": {"state": {0: {"momentum": torch.ones(3, 3)}}}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    allowed = torch.serialization.get_safe_globals()
    assert same(read_weights(tmp_path / "w.pth"), state)
    assert set(torch.serialization.get_safe_globals()) == set(allowed)


@pytest.mark.parametrize(
    ("value", "old", "new"),
    [
        (np.float64(91.2), b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"),
        (np.arange(3), b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"),
        (pathlib.PurePosixPath("a/b"), b"pathlib\nPurePosixPath", b"pathlib._local\nPosixPath"),
        (pathlib.PurePosixPath("a/b"), b"pathlib\nPurePosixPath", b"pathlib\nWindowsPath"),
    ],
)
def test_files_of_other_versions(value, old, new, tmp_path):
    state = ResNet(8).state_dict()
    torch.save({"model": state, "best": value}, tmp_path / "w.pth")
    renamed_globals(tmp_path / "w.pth", old, new)
    assert same(read_weights(tmp_path / "w.pth"), state)


def test_what_the_user_allowed_before_stays_allowed(tmp_path):
    torch.save({"model": ResNet(8).state_dict(), "args": argparse.Namespace()}, tmp_path / "w.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_weights(tmp_path / "w.pth")
        assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_other_pickle_protocols_are_refused_with_the_fix(tmp_path):
    torch.save({"model": ResNet(8).state_dict()}, tmp_path / "w.pth", pickle_protocol=5)
    with pytest.raises(NetworkError, match=r"was not loaded: .*pickle protocol.*save_weights"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_whole_networks_are_refused_with_the_fix(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"it holds torch.nn.modules.linear.Linear.*torch.load.*save_weights"):
        read_weights(tmp_path / "w.pth")
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.ones(1, 3)), tmp_path / "w.pt")
    with pytest.raises(NetworkError, match=r"it is a TorchScript archive.*torch.jit.load.*save_weights"):
        read_weights(tmp_path / "w.pt")


def test_numpy_arrays_as_weights(tmp_path):
    state = nn.Linear(3, 2).state_dict()
    swapped = {name: tensor.numpy().astype(">f4") for name, tensor in state.items()}
    torch.save({"model": swapped}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), state)


KEYS = "model_state_dict net network weights params module ema model_ema state_dict_ema params_ema student generator"


@pytest.mark.parametrize("key", [*KEYS.split(), "model.state_dict", "ema.module", "checkpoint.model"])
def test_places_of_the_only_network(key, tmp_path, caplog):
    state = ResNet(8).state_dict()
    content = state
    for part in reversed(key.split(".")):
        content = {"epoch": 3, "loss": {"weight": torch.ones(9)}, "lr": {"a": torch.tensor(0.1)}, part: content}
        content |= {key: {"w": {"weight": torch.ones(2, 2)}} for key in ("optimizer", "g_optim", "LR_scheduler")}
    torch.save(content, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), state)
    assert not caplog.records


def test_parameters_that_are_not_a_network(tmp_path, caplog):
    state = ResNet(8).state_dict()
    torch.save({"model": state, "params": {"lr": torch.tensor(0.1)}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), state)
    assert not caplog.records


def test_non_tensor_module_states_are_left_out_with_a_warning(tmp_path, caplog):
    state = ResNet(8).state_dict()
    torch.save({**state, "fc._extra_state": {"amax": 1.0}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), state)
    assert "left out 'fc._extra_state' (not tensors)" in caplog.text


def test_numbers_beside_the_weights_in_one_dict(tmp_path):
    network = ResNet(8)
    torch.save({**network.state_dict(), "epoch": 3, "best_acc": torch.tensor(91.0), "note": "x"}, tmp_path / "w.pth")
    other = ResNet(8)
    assert load_weights(other, tmp_path / "w.pth") == []
    assert same(other.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("raw", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema")]
)
def test_the_network_is_preferred_to_its_averaged_copy(raw, ema, tmp_path, caplog):
    first, second = ResNet(8).state_dict(), ResNet(8).state_dict()
    averaged = {"n_averaged": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in second.items()}
    torch.save({ema: averaged, raw: first}, tmp_path / "w.pth")
    caplog.set_level(logging.WARNING, "flowstill")
    assert same(read_weights(tmp_path / "w.pth"), first)
    assert f"read from '{raw}'; the file also holds '{ema}'" in caplog.text
    assert f"w.pth#{ema}" in caplog.text
    caplog.clear()
    assert same(read_weights(f"{tmp_path}/w.pth#{ema}"), second)
    assert same(read_weights(f"{tmp_path}/w.pth#{raw}"), first)
    assert not caplog.records


def test_two_networks_need_a_name(tmp_path):
    first, second = ResNet(8).state_dict(), ResNet(14).state_dict()
    file = tmp_path / "w.pth"
    torch.save({"teacher": {"state_dict": second}, "student": first, "epoch": 3}, file)
    with pytest.raises(
        NetworkError, match=r"holds several networks: 'teacher.state_dict', 'student'. Say which.*w.pth#student"
    ):
        read_weights(file)
    assert same(read_weights(f"{file}#student"), first)
    assert same(read_weights(f"{file}#teacher"), second)
    assert same(read_weights(f"{file}#teacher.state_dict"), second)
    with pytest.raises(NetworkError, match=r"has no 'techer'. Choose from .*'teacher.state_dict'"):
        read_weights(f"{file}#techer")
    torch.save({"model": first, "net": second}, file)
    with pytest.raises(NetworkError, match="several networks: 'model', 'net'"):
        read_weights(file)
    torch.save({"model": first, "net": dict(reversed(first.items()))}, file)
    assert same(read_weights(file), first)


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_a_prefix_names_one_of_two_networks(save, tmp_path):
    first, second = ResNet(8).state_dict(), ResNet(14).state_dict()
    both = {f"module.student.{k}": v for k, v in first.items()} | {f"module.teacher.{k}": v for k, v in second.items()}
    save(both, tmp_path / "w")
    assert same(read_weights(f"{tmp_path}/w#student"), first)
    assert same(create("resnet14", weights=f"{tmp_path}/w#teacher").state_dict(), second)
    with pytest.raises(NetworkError, match=r"has no 'generator'.*'student', 'teacher'"):
        read_weights(f"{tmp_path}/w#generator")


def test_a_prefix_within_a_key(tmp_path):
    state = ResNet(8).state_dict()
    content = {"state_dict": {f"student.{name}": tensor for name, tensor in state.items()}}
    torch.save(content, tmp_path / "w.ckpt")
    assert same(read_weights(f"{tmp_path}/w.ckpt#student"), state)
    assert same(read_weights(f"{tmp_path}/w.ckpt#state_dict.student"), state)


def test_names_with_a_number_sign(tmp_path):
    first, second = ResNet(8).state_dict(), ResNet(8).state_dict()
    (tmp_path / "run#1").mkdir()
    save_weights(first, tmp_path / "run#1" / "w#student")
    torch.save({"student": second, "teacher": first}, tmp_path / "run#1" / "w")
    assert same(read_weights(tmp_path / "run#1" / "w#student"), first)
    assert same(read_weights(tmp_path / "run#1" / "w#teacher"), first)
    with pytest.raises(NetworkError, match="No weights file"):
        read_weights(tmp_path / "no#student")


def sharded(state, folder, kind):
    """Write two shards and their index, as the Hugging Face hub has them."""
    suffix, save, stem = (
        ("safetensors", save_file, "model") if kind == "safetensors" else ("bin", torch.save, "pytorch_model")
    )
    places = {}
    for number, names in enumerate((list(state)[::2], list(state)[1::2]), start=1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        save({name: state[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(kind, tmp_path):
    state = ResNet(8).state_dict()
    index = sharded(state, tmp_path, kind)
    assert same(read_weights(index), state)
    assert same(read_weights(tmp_path), state)
    second = next(tmp_path.glob("*-00002-of*"))
    second.rename(tmp_path / "away")
    with pytest.raises(NetworkError, match=rf"names 2 files, of which 1 are missing: '{second.name}'"):
        read_weights(tmp_path)
    torch.save({"fc.weight": torch.ones(1)}, second)
    with pytest.raises(NetworkError, match=rf"{second.name} lacks '"):
        read_weights(index)


@pytest.mark.parametrize("place", ["../w.safetensors", "sub/w.safetensors", "/w.safetensors", "..\\w", "C:w", "..", ""])
def test_shards_outside_the_folder_are_not_read(place, tmp_path):
    folder = tmp_path / "inner"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "w.safetensors", folder / "sub" / "w.safetensors"):
        save_weights(ResNet(8), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"fc.weight": place}}))
    with pytest.raises(NetworkError, match="not in its own folder"):
        read_weights(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_damaged_indices(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(NetworkError, match="is not an index of weights"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_folders_of_the_hub(name, tmp_path):
    state = ResNet(8).state_dict()
    blob = tmp_path / "blobs" / "0a1b"  # the hub's cache links its files
    blob.parent.mkdir()
    (save_file if "safetensors" in name else torch.save)(state, blob)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / name).symlink_to(blob)
    assert same(create("resnet8", weights=tmp_path / "snapshot").state_dict(), state)
    with pytest.raises(NetworkError, match="it is a folder; name the file in it"):
        read_weights(tmp_path)


def test_quantised_weights_are_refused(tmp_path):
    weight = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    torch.save({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(NetworkError, match=r"'weight' is quantised \(torch.qint8\).*before the quantisation"):
        read_weights(tmp_path / "w.pth")
    torch.save(
        {"conv.weight": torch.ones(2, 2), "fc._packed_params._packed_params": (weight, None)}, tmp_path / "w.pth"
    )
    with pytest.raises(NetworkError, match="quantised"):
        read_weights(tmp_path / "w.pth")


def test_meta_tensors_are_refused(tmp_path):
    with torch.device("meta"):
        torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(NetworkError, match="'weight' is a meta tensor"):
        read_weights(tmp_path / "w.pth")
