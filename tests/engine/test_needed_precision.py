"""Kinds of knowledge that bfloat16 spoils: which ones, and the precision that a run with them chooses."""

import logging

import pytest
import torch
from torch.nn import functional as F

import flowstill as fs
from flowstill.engine.precision import choose, needing_float32
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Reading, Tap
from flowstill.nets.resnet import ResNet
from flowstill.transfer.knowledge import KNOWLEDGE, Setting, parse_knowledge
from flowstill.transfer.procedures import joint
from support.compared_runs import PLAIN, stop_at
from support.engine_recipes import recipe

AUTO = {**PLAIN, "precision": "auto"}
HALF = {**PLAIN, "precision": "bf16"}
SIZES = {"relu": 16, "layer1": 16, "layer2": 8, "layer3": 4}


def maps(seed=0):
    """Smooth maps with mixed channels and noise, after ReLU; the student's are the teacher's with as much noise again."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    teacher, student = {}, {}
    for tap, size in SIZES.items():
        smooth = F.interpolate(draw(8, 16, 4, 4), size=(size, size), mode="bilinear")
        mixed = torch.einsum("bchw,dc->bdhw", smooth, draw(16, 16) / 4) + 0.5 * draw(8, 16, size, size)
        teacher[tap], student[tap] = mixed.relu(), (mixed + draw(8, 16, size, size)).relu()
    return teacher, student


def gradient(knowledge, dtype, maps_in):
    """By the student's maps, in float64, of a loss in ``dtype`` on maps that a forward gives in ``maps_in``."""
    network = ResNet(8, width=(16, 16, 16))
    loss = knowledge.build(pair_sections(network, network, (3, 16, 16)), Setting(network, network, (3, 16, 16), 10))
    teacher, student = maps()
    leaves = {tap: values.requires_grad_() for tap, values in student.items()}
    read = [
        Reading(torch.zeros(8, 3, 16, 16), None, {Tap(tap): values.to(maps_in) for tap, values in side.items()})
        for side in (teacher, leaves)
    ]
    value = loss.to(dtype)(*read)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return torch.cat([part.flatten() for part in found if part is not None])


def cosine(knowledge, maps_in):
    exact = gradient(knowledge, torch.float64, torch.float64)
    return float(F.cosine_similarity(gradient(knowledge, torch.float32, maps_in), exact, dim=0))


@pytest.mark.parametrize("rank", [4, 8])
def test_several_singular_vectors_need_float32(rank):
    knowledge = parse_knowledge({"name": "svd", "rank": rank})
    assert knowledge.needs_float32
    assert cosine(knowledge, torch.bfloat16) < 0.99
    assert cosine(knowledge, torch.float32) > 1 - 1e-8


@pytest.mark.parametrize("name", ["fsp", "dense", "attention", "hints", "svd"])
def test_other_knowledge_does_not(name):
    knowledge = parse_knowledge(name)
    assert not knowledge.needs_float32
    assert cosine(knowledge, torch.bfloat16) > 0.999


def test_knowledge_declares_the_need_for_float32():
    assert [name for name in KNOWLEDGE if KNOWLEDGE.find(name)().needs_float32] == ["nst"]
    assert [fs.SVD(rank=rank).needs_float32 for rank in (1, 2, 3, 16)] == [False, True, True, True]


def with_svd(rank):
    return recipe(student=joint(fs.SVD(rank=rank), steps=3, lr=0.01))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_which_jobs_of_a_recipe_need_it():
    assert needing_float32(with_svd(1)) == ()
    assert needing_float32(with_svd(2)) == ("svd",)
    assert needing_float32(with_svd(2), ["student"]) == ()
    assert needing_float32(recipe(student=joint(["nst", fs.SVD(rank=2)], steps=3, lr=0.01))) == ("nst", "svd")


def test_auto_does_not_measure_bf16_where_float32_is_needed(monkeypatch):
    tried = []

    def faster_in_bf16(precision, *_, **__):
        tried.append(precision.dtype)
        return 0.1 if precision.dtype == "bf16" else 1.0

    monkeypatch.setattr("flowstill.engine.precision._step_time", faster_in_bf16)
    network = lambda: ResNet(8, width=0.25)  # noqa: E731
    assert choose("auto", network, (3, 8, 8), 8, "cpu").dtype == "bf16"
    tried.clear()
    assert choose("auto", network, (3, 8, 8), 8, "cpu", True).dtype == "32"
    assert set(tried) == {"32"}
    assert choose("bf16", network, (3, 8, 8), 8, "cpu", True).dtype == "bf16"


def test_an_auto_run_takes_float32_says_so_and_keeps_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "flowstill")
    with pytest.raises(KeyboardInterrupt):
        fs.train(with_svd(2), tmp_path / "run", on_step=stop_at(("student", "joint", 1)), **AUTO)
    assert "float32 for the whole run, since the gradients of svd need it" in caplog.text
    run = fs.train(with_svd(2), tmp_path / "run", resume=True, **AUTO)
    assert run.recipe["run"]["precision"]["dtype"] == "32" == run.summary["precision"]["dtype"]
    assert run.recipe["run"]["float32_for"] == ["svd"]
    assert "as svd needs float32" in (run.path / "report.html").read_text(encoding="utf-8")
    assert warnings(caplog) == []


def test_requested_bf16_is_kept_with_a_warning(tmp_path, caplog):
    run = fs.train(with_svd(2), tmp_path / "two", **HALF)
    assert run.recipe["run"]["precision"]["dtype"] == "bf16"
    assert "float32_for" not in run.recipe["run"]
    (said,) = warnings(caplog)
    assert said.startswith("precision bf16: expected float32 for svd")
    assert said.endswith("Use precision='32', or auto.")
    caplog.clear()
    fs.train(with_svd(1), tmp_path / "one", **HALF)
    assert warnings(caplog) == []


def test_a_run_that_grows_keeps_bf16_with_a_warning(tmp_path, caplog):
    fs.train(with_svd(1), tmp_path / "run", **HALF)
    given = with_svd(1)
    given.jobs["more"] = with_svd(2).jobs["student"]
    run = fs.train(given, tmp_path / "run", resume=True, **AUTO)
    assert run.recipe["run"]["precision"]["dtype"] == "bf16"
    (said,) = warnings(caplog)
    assert said.endswith("Give another out= to train at float32.")
