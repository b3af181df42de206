"""Names that the papers' recipes give to torchvision's networks."""

from __future__ import annotations

from flowstill.nets.registry import Network, add_network

ALIASES = {
    "resnet34-imagenet": ("torchvision:resnet34", "ResNet for 224 pixels, 3-4-6-3 blocks (Yim et al. 2017)"),
    # Pretrained in torchvision it errs on 18.1 %, the teacher of Liu et al. on 22.7 %; timm's resnet101.tv_in1k is near
    # that teacher (22.6 %).
    "resnet101-imagenet": ("torchvision:resnet101", "ResNet for 224 pixels, the teacher of Liu et al. (2019)"),
}

for _name, (_other, _about) in ALIASES.items():
    add_network(_name, Network(_other, _about), __name__)
