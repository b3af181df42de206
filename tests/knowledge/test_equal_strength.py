"""The arms of the dense ablation move a flow as strongly as plain FSP: gradients in float64, summed over a cycle."""

import pytest
import torch
from torch.nn import functional as F

from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.nets.resnet import ResNet
from flowstill.recipes.load import load_recipe
from flowstill.transfer.methods import find_method
from flowstill.transfer.procedures import blocks, cyclic

SHAPE, TAPS = (3, 8, 8), ("relu", "layer1", "layer2", "layer3")  # X_0 .. X_3
WIDTHS = (16, 32, 64)
FSP_ALPHA = 1 / (16 * 16 + 16 * 32 + 32 * 64)
PLAIN, ALL = {(0, 1), (1, 2), (2, 3)}, {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}


class Pair:
    """Two networks, read once at all taps."""

    def __init__(self):
        torch.manual_seed(0)
        self.teacher, self.student = ResNet(8, width=WIDTHS).double().eval(), ResNet(8, width=WIDTHS).double()
        self.pairs = pair_sections(self.teacher, self.student, SHAPE)
        images = torch.randn(3, *SHAPE, dtype=torch.float64)
        with torch.no_grad():
            self.theirs = Tapped(self.teacher, TAPS)(images)
        self.ours = Tapped(self.student, TAPS)(images)

    def gradient(self, loss):
        found = torch.autograd.grad(loss, list(self.student.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).flatten()
                for p, g in zip(self.student.parameters(), found, strict=True)
            ]
        )

    def of_flow(self, term, span):
        """The gradient of the term's part that compares this flow: all others are held against themselves."""
        loss = term.knowledge.build(self.pairs)
        flows = [(TAPS.index(flow.front.path), TAPS.index(flow.back.path)) for flow in loss.student_flows]
        with torch.no_grad():
            targets = zip(flows, loss.target(self.theirs), loss.target(self.ours), strict=True)
            target = [theirs if flow == span else ours for flow, theirs, ours in targets]
        return self.gradient(term.weight.at(0, 1) * loss.compare(self.ours, target)), span in flows

    def of_fsp(self, span):
        """Three updates of Eq. 2 with FSP's alpha on this flow, written out."""
        matrices = []
        for reading in (self.theirs, self.ours):
            front, back = (reading[TAPS[i]] for i in span)
            front = F.max_pool2d(front, front.shape[-1] // back.shape[-1])
            matrices.append(torch.einsum("bmhw,bnhw->bmn", front, back) / back[0, 0].numel())
        return self.gradient(3 * FSP_ALPHA * (matrices[0] - matrices[1]).square().sum() / len(matrices[0]))


@pytest.fixture(scope="module")
def pair():
    return Pair()


def cycles(stage):
    """The terms of three updates, one for each section."""
    return [term for t in range(3) for update in stage.cycle[t % len(stage.cycle)] for term in update.terms]


ARMS = {
    **{
        f"{recipe}-{row}": (lambda recipe=recipe, row=row: cycles(load_recipe(recipe).jobs[row].stages[0]), flows)
        for recipe, plain in (("dense-ablation", "plain"), ("cifar10-methods", "fsp"))
        for row, flows in ((plain, PLAIN), ("sequential", PLAIN), ("dense", ALL), ("dense_sequential", ALL))
    },
    "method dense": (lambda: cycles(find_method("dense").stages(3)[0]), ALL),
    "method dense-sequential": (lambda: cycles(find_method("dense-sequential").stages(3)[0]), ALL),
    "steps that end": (
        lambda: cycles(cyclic([Dense(weighting="fsp", step=s, anchor="end") for s in (1, 2, 3)], steps=3, lr=1)[0]),
        ALL,
    ),
    "blocks": (
        lambda: [
            term
            for stage in blocks([Dense(weighting="fsp", step=s) for s in (1, 2, 3)], steps=3, lr=1)
            for term in stage.updates[0].terms
        ],
        ALL,
    ),
}


@pytest.mark.parametrize("arm", ARMS)
def test_each_flow_has_fsps_gradient_over_a_cycle(pair, arm):
    terms, flows = ARMS[arm][0](), ARMS[arm][1]
    for span in ALL:
        parts = [pair.of_flow(term, span) for term in terms]
        assert any(trained for _, trained in parts) == (span in flows)
        found = sum(gradient for gradient, _ in parts)
        expected = pair.of_fsp(span) if span in flows else torch.zeros_like(found)
        assert float(pair.of_fsp(span).norm()) > 1e-6
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_equal_leaves_a_step_an_uneven_share():
    """The weighting before November 2026: 1/5376 in every third update, against 1/2816 in each, 0.175 of it."""
    network = ResNet(8, width=WIDTHS)
    pairs = pair_sections(network, network, (3, 32, 32))
    alphas = [Dense(step=step).build(pairs).alphas for step in (1, 2, 3)]
    (plain, *_) = FSP().build(pairs).alphas
    assert alphas == [(pytest.approx(1 / 5376),) * count for count in (3, 2, 1)]
    assert alphas[0][0] / (3 * plain) == pytest.approx(0.1746, abs=1e-4)


@pytest.mark.parametrize(("anchor", "counts"), [("start", (3, 2, 1)), ("end", (1, 2, 3))])
def test_the_alphas_are_the_documented_ones(anchor, counts):
    network = ResNet(8, width=WIDTHS)
    pairs = pair_sections(network, network, (3, 32, 32))
    assert Dense(weighting="fsp").build(pairs).alphas == (pytest.approx(1 / 2816),) * 6
    for step, count in zip((1, 2, 3), counts, strict=True):
        loss = Dense(weighting="fsp", step=step, anchor=anchor).build(pairs)
        assert loss.alphas == (pytest.approx(3 / 2816),) * count
