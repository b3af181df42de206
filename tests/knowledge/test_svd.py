"""The loss of distilled feature vectors against the paper: oracles (c) 8, 9 and 11."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from flowstill.errors import RecipeError, ShapeError
from flowstill.features.pairs import SectionPair
from flowstill.features.sections import Section
from flowstill.features.taps import Reading, Tap
from flowstill.knowledge import svd
from flowstill.knowledge.svd import SVD, align, dfv_loss, truncated_svd
from flowstill.transfer.knowledge import parse_knowledge
from oracles import svd as oracle
from oracles.svd_maps import hopeless, random_maps

TAPS = [Tap(name) for name in ("x0", "x1", "x2")]


def pairs_of(teacher, student):
    """Sections x0 -> x1 -> x2 whose maps have these shapes (D, H, W)."""

    def section(shapes, i):
        entry, exit_ = shapes[i], shapes[i + 1]
        return Section(TAPS[i], TAPS[i + 1], TAPS[i + 1], entry, exit_, exit_, (1.0, 1.0))

    return tuple(SectionPair(section(teacher, i), section(student, i)) for i in range(len(teacher) - 1))


def reading(maps):
    return Reading(torch.zeros(len(maps[0]), 3, 8, 8), maps=dict(zip(TAPS, maps, strict=False)))


TEACHER = [(6, 5, 4), (8, 5, 4), (10, 2, 3)]
STUDENT = [(6, 3, 3), (8, 4, 4), (10, 3, 3)]


def networks(batch=3, dtype=torch.float64, teacher=TEACHER, student=STUDENT):
    """A teacher's maps, and similar ones of a student."""
    mixing = torch.Generator().manual_seed(9)
    maps_t = [random_maps(batch, *shape, seed=i, dtype=dtype) for i, shape in enumerate(teacher)]
    maps_s = []
    for their, (depth, height, width) in zip(maps_t, student, strict=True):
        like = F.adaptive_avg_pool2d(their, (height, width)) + 0.3 * torch.randn(
            batch, depth, height, width, generator=mixing, dtype=dtype
        )
        maps_s.append(like.relu())
    return maps_t, maps_s


def loss_of(maps_t, maps_s, **options):
    shapes = [[tuple(m.shape[1:]) for m in maps] for maps in (maps_t, maps_s)]
    loss = SVD(**options).build(pairs_of(*shapes))
    return loss.compare(reading(maps_s), loss.target(reading(maps_t)))


OPTIONS = [
    {},
    {"rank": 2},
    {"rank": 3, "alignment": "hungarian"},
    {"rank": 2, "reduction": "mean"},
    {"rank": 2, "sqrt_rank": True},
    {"beta": 0.5},
    {"rank": 50},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_is_the_papers(options):
    maps_t, maps_s = networks()
    given = dict(options)
    expected = oracle.transfer_loss(
        [m.numpy() for m in maps_t],
        [m.numpy() for m in maps_s],
        [(0, 1), (1, 2)],
        given.pop("rank", 1),
        matching=given.pop("alignment", "greedy"),
        **given,
    )
    assert expected > 1e-4
    assert loss_of(maps_t, maps_s, **options).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ([(5, 3, 3), (6, 3, 3), (8, 2, 3)], [(5, 3, 3), (6, 1, 1), (8, 1, 1)]),
        ([(3, 4, 4), (6, 1, 2), (8, 3, 3)], [(3, 4, 4), (6, 4, 2), (8, 3, 3)]),
        ([(5, 2, 1), (2, 4, 4), (7, 2, 2)], [(5, 3, 3), (2, 4, 4), (7, 5, 1)]),
    ],
    ids=["student's size", "teacher's size", "channels"],
)
def test_small_maps_lower_only_their_own_rank(teacher, student):
    maps_t, maps_s = ([m - 0.3 for m in maps] for maps in networks(teacher=teacher, student=student))
    arrays = [[m.numpy() for m in maps] for maps in (maps_t, maps_s)]
    expected = oracle.transfer_loss(*arrays, [(0, 1), (1, 2)], 4)
    assert loss_of(maps_t, maps_s, rank=4).item() == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def scramble(monkeypatch):
    """Make the solver return other signs, as another LAPACK may; ``order`` also reverses the vectors."""
    real, state = truncated_svd, {"seed": 0}

    def install(*, teacher, student, order=False):
        def scrambled(maps, rank, **options):
            sigma, vectors = real(maps, rank, **options)
            state["seed"] += 1
            generator = torch.Generator().manual_seed(state["seed"])
            if student if options else teacher:  # only the student's call names a gradient
                vectors = vectors * (torch.randint(2, (len(vectors), 1, vectors.shape[2]), generator=generator) * 2 - 1)
                vectors = vectors.flip(2) if order and options else vectors
            return sigma, vectors

        monkeypatch.setattr(svd, "truncated_svd", scrambled)

    return install


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("alignment", ["greedy", "hungarian"])
def test_8_no_loss_if_the_student_is_the_teacher(scramble, rank, alignment):
    maps_t, _ = networks()
    maps_t = [m - 0.3 for m in maps_t]
    assert loss_of(maps_t, maps_t, rank=rank, alignment=alignment).item() < 1e-24
    scramble(teacher=True, student=True, order=True)
    assert loss_of(maps_t, maps_t, rank=rank, alignment=alignment).item() < 1e-24


def test_9_signs_of_the_solver_change_nothing(scramble):
    maps_t, maps_s = ([m - 0.3 for m in maps] for maps in networks())
    plain = loss_of(maps_t, maps_s, rank=3)
    scramble(teacher=True, student=True)
    for _ in range(3):
        torch.testing.assert_close(loss_of(maps_t, maps_s, rank=3), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("signs", "invariant"), [("paper", "student"), ("official", "teacher")])
def test_9_without_canonical_signs_the_loss_depends_on_one_side(scramble, signs, invariant):
    maps_t, maps_s = ([m - 0.3 for m in maps] for maps in networks())
    plain = loss_of(maps_t, maps_s, rank=3, signs=signs)
    scramble(teacher=invariant == "teacher", student=invariant == "student")
    torch.testing.assert_close(loss_of(maps_t, maps_s, rank=3, signs=signs), plain, rtol=1e-12, atol=0)
    scramble(teacher=invariant != "teacher", student=invariant != "student")
    assert abs(loss_of(maps_t, maps_s, rank=3, signs=signs) - plain) > 1e-3 * plain


def test_11_loss_of_hopeless_maps_is_finite_and_zero_without_energy():
    for case in hopeless(24, 6, 6, torch.float32).values():
        maps_t, maps_s = case.expand(2, -1, -1, -1), case.expand(2, -1, -1, -1).clone().requires_grad_()
        other = random_maps(2, 24, 6, 6, seed=5, dtype=torch.float32)
        for pair in (
            ([maps_t, other], [maps_s, other.clone()]),
            ([other, other], [maps_s, maps_s]),
            ([maps_t, maps_t], [maps_s, other]),
        ):
            loss = loss_of(*pair, rank=3)
            (grad,) = torch.autograd.grad(loss, maps_s)
            assert loss.isfinite()
            assert grad.isfinite().all()
    zeros = torch.zeros(2, 6, 4, 4)
    some = random_maps(2, 6, 4, 4, dtype=torch.float32)
    assert loss_of([zeros, some], [some, some.flip(1)]).item() == 0
    assert loss_of([some, some], [zeros, some.flip(1)]).item() == 0


@pytest.mark.parametrize("alignment", ["greedy", "hungarian"])
def test_a_diverged_student_has_a_nan_loss(alignment):
    maps_t, maps_s = networks()
    maps_s[1][0, 0, 0, 0] = torch.nan
    assert loss_of(maps_t, maps_s, rank=2, alignment=alignment).isnan()


def test_autocast_does_not_change_the_loss():
    maps_t, maps_s = networks(dtype=torch.float32)
    maps_s = [m.requires_grad_() for m in maps_s]
    plain = loss_of(maps_t, maps_s, rank=2)
    expected = torch.autograd.grad(plain, maps_s)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(maps_t, maps_s, rank=2)
        grads = torch.autograd.grad(loss, maps_s)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)


def test_bf16_maps_give_the_loss_of_their_rounded_values():
    maps_t, maps_s = ([m.bfloat16() for m in maps] for maps in networks(8))
    expected = oracle.transfer_loss(
        [m.double().numpy() for m in maps_t], [m.double().numpy() for m in maps_s], [(0, 1), (1, 2)], 2
    )
    loss = loss_of(maps_t, maps_s, rank=2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_a_tap_of_two_sections_is_decomposed_once(monkeypatch):
    calls = []
    real = truncated_svd
    monkeypatch.setattr(svd, "truncated_svd", lambda maps, *a, **k: calls.append(maps) or real(maps, *a, **k))
    maps_t, maps_s = networks()
    loss_of(maps_t, maps_s)
    assert len(calls) == len({id(m) for m in calls}) == 6


def test_the_target_has_no_gradient_and_can_be_stored_in_half_precision():
    maps_t, maps_s = networks(8, dtype=torch.float32)
    maps_t = [m.requires_grad_() for m in maps_t]
    loss = SVD(rank=2).build(pairs_of(TEACHER, STUDENT))
    assert loss.storable
    assert loss.reduction == "sum"
    assert SVD(reduction="mean").build(pairs_of(TEACHER, STUDENT)).reduction == "mean"
    assert loss.teacher_taps == loss.student_taps == tuple(TAPS)
    target = loss.target(reading(maps_t))
    assert [tuple(t.shape) for t in target] == [(8, 6, 2), (8, 2), (8, 8, 2), (8, 2), (8, 10, 2), (8, 2)]
    assert not any(t.requires_grad for t in target)
    one_by_one = [loss.target(reading([m[b : b + 1] for m in maps_t])) for b in range(8)]
    live = loss.compare(reading(maps_s), target)
    again = loss.compare(reading(maps_s), tuple(torch.cat(parts) for parts in zip(*one_by_one, strict=True)))
    torch.testing.assert_close(again, live, rtol=1e-5, atol=0)
    half = loss.compare(reading(maps_s), tuple(t.half() for t in target))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, live, rtol=0.02, atol=0)


def test_the_mean_is_the_sum_over_the_batch_size():
    maps_t, maps_s = networks(5)
    torch.testing.assert_close(5 * loss_of(maps_t, maps_s, reduction="mean"), loss_of(maps_t, maps_s))
    nobody = (torch.zeros(0, 2, 1), torch.zeros(0, 3, 1))
    assert dfv_loss(nobody, nobody, reduction="mean") == 0


@pytest.mark.parametrize("rank", [1, 3])
def test_descent_makes_the_students_vectors_the_teachers(rank):
    maps_t, maps_s = networks(4, dtype=torch.float32)
    losses = []
    for _ in range(50):
        maps_s = [m.detach().requires_grad_() for m in maps_s]
        loss = loss_of(maps_t, maps_s, rank=rank)
        maps_s = [m - 30 * g for m, g in zip(maps_s, torch.autograd.grad(loss, maps_s), strict=True)]
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_gradient_of_the_loss_by_finite_differences():
    maps_t, maps_s = networks(2)
    leaf = [m.requires_grad_() for m in maps_s]
    assert gradcheck(lambda *maps_s: loss_of(maps_t, maps_s, rank=2), leaf, fast_mode=True)


def test_errors_name_the_problem():
    with pytest.raises(ShapeError, match=r"same images and channels.*teacher \(2, 3, 1\), student \(2, 4, 2\)"):
        align(torch.zeros(2, 3, 1), torch.zeros(2, 4, 2))
    with pytest.raises(ShapeError, match="at least as many"):
        align(torch.zeros(2, 3, 2), torch.zeros(2, 3, 1))
    narrow = [(6, 3, 3), (7, 4, 4), (10, 3, 3)]
    with pytest.raises(ShapeError, match=r"x1 in the teacher has 8 channels, x1 in the student 7.*'attention'"):
        SVD().build(pairs_of(TEACHER, narrow))


def test_options_in_a_recipe():
    assert parse_knowledge("svd") == SVD(rank=1, beta=8.0, reduction="sum", alignment="greedy", sqrt_rank=False)
    assert parse_knowledge({"name": "svd", "rank": 4, "signs": "official"}).rank == 4
    for wrong in ({"rank": 0}, {"beta": 0}, {"alignment": "hungary"}, {"reduction": "avg"}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            parse_knowledge({"name": "svd", **wrong})
