"""Networks of timm and torchvision, with fresh and with pretrained weights."""

import logging

import pytest
import torch
from torch import nn

from flowstill.errors import NetworkError
from flowstill.nets import create, save_weights


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:squeezenet1_1", "torchvision:googlenet"])
def test_library_networks_take_classes_and_channels(name):
    network = create(name, 5, in_channels=1)
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 5)  # logits alone, in train mode too
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert first.weight.shape[1] == 1
    assert first.weight.std() > 0


@pytest.mark.parametrize("name", ["torchvision:regnet_y_400mf", "torchvision:mobilenet_v3_large", "timm:convnext_atto"])
def test_library_networks_on_meta_fetch_and_draw_nothing(name):
    drawn = torch.get_rng_state()
    with torch.device("meta"):
        network = create(name, 4, pretrained=True).eval()
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert all(p.is_meta for p in network.parameters())
    if "regnet" not in name:  # which computes its widths with values, and is built on the CPU first
        assert torch.equal(torch.get_rng_state(), drawn)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nobody listens
    return tmp_path


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "torchvision:squeezenet1_1"])
def test_pretrained_weights_that_cannot_be_fetched(name, offline):
    with pytest.raises(NetworkError, match=r"could not be built with pretrained weights .*set 'weights: FILE' instead"):
        create(name, pretrained=True)


def test_pretrained_weights_from_the_libraries_caches_with_a_fresh_head(offline, caplog):
    import timm
    from torchvision.models import SqueezeNet1_1_Weights

    caplog.set_level(logging.WARNING, "flowstill")
    theirs = create("torchvision:squeezenet1_1")
    (offline / "torch/hub/checkpoints").mkdir(parents=True)
    torch.save(
        theirs.state_dict(), offline / "torch/hub/checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.split("/")[-1]
    )
    ours = create("torchvision:squeezenet1_1", 7, pretrained=True)
    fresh = {k for k, v in ours.state_dict().items() if not torch.equal(v, theirs.state_dict()[k])}
    assert fresh == {"classifier.1.weight", "classifier.1.bias"}
    assert ours(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert "the pretrained head has 1000 classes, the network 7" in caplog.text
    with pytest.raises(NetworkError, match="pretrained on 3 channels, not 1"):
        create("torchvision:squeezenet1_1", in_channels=1, pretrained=True)

    theirs = create("timm:mobilenetv3_small_050")
    cached = (
        offline / "hub" / f"models--{timm.get_pretrained_cfg('mobilenetv3_small_050').hf_hub_id.replace('/', '--')}"
    )
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_weights(theirs, cached / "snapshots" / ("0" * 40) / "model.safetensors")
    ours = create("timm:mobilenetv3_small_050", 7, pretrained=True)
    same = [torch.equal(v, ours.state_dict()[k]) for k, v in theirs.state_dict().items() if "classifier" not in k]
    assert all(same)
    assert ours.get_classifier().out_features == 7
