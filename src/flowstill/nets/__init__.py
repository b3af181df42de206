"""Networks: the papers' own, timm's, torchvision's and the user's, by name; their weights and their size."""

from flowstill.nets.accuracy import recorded_accuracy
from flowstill.nets.checkpoints import read_weights, save_weights, weights_file
from flowstill.nets.counts import Counts, count
from flowstill.nets.create import NAME_FORMS, build, create, known_nets
from flowstill.nets.factories import needs_trust
from flowstill.nets.preprocessing import Preprocessing
from flowstill.nets.registry import NETWORKS, Network, register_network
from flowstill.nets.resnet import ResNet
from flowstill.nets.spec import Net, is_object
from flowstill.nets.weights import fit_weights, fitted_weights, load_weights

__all__ = [
    "NAME_FORMS",
    "NETWORKS",
    "Counts",
    "Net",
    "Network",
    "Preprocessing",
    "ResNet",
    "build",
    "count",
    "create",
    "fit_weights",
    "fitted_weights",
    "is_object",
    "known_nets",
    "load_weights",
    "needs_trust",
    "read_weights",
    "recorded_accuracy",
    "register_network",
    "save_weights",
    "weights_file",
]
