"""Truncated SVD and distilled feature vectors against the paper: oracles (c) 1-12, and what must never break."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from flowstill.errors import RecipeError, ShapeError
from flowstill.knowledge import eigen, parse_knowledge, svd
from flowstill.knowledge.svd import SVD, align, canonical_signs, dfv_loss, feature_weights, match, rbf, truncated_svd
from flowstill.sections import Section, SectionPair
from flowstill.taps import Reading, Tap
from oracles import svd as oracle

# (D, H, W): tall, wide, square; the last three go through the block iteration, if of low enough rank
SHAPES = {
    "tall": (5, 4, 3), "wide": (9, 3, 2), "square": (6, 2, 3),
    "large tall": (24, 5, 6), "large wide": (26, 4, 6), "large square": (24, 4, 6),
}  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
ranks = pytest.mark.parametrize("rank", [1, 2, 4])


def random_maps(*shape, seed=0, dtype=torch.float64, ranks=None):
    """Maps as behind a ReLU, or of an exact rank."""
    generator = torch.Generator().manual_seed(seed)
    if ranks:
        batch, depth, height, width = shape
        factors = [
            torch.randn(batch, size, ranks, generator=generator, dtype=torch.float64)
            for size in (depth, height * width)
        ]
        return (factors[0] @ factors[1].mT).view(shape).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).relu().to(dtype)


def spectrum(values, depth, height, width, seed=0):
    """One map with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    left, right = (torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64))[0]
                   for n in (height * width, depth))  # fmt: skip
    m = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT
    return m.T.reshape(1, depth, height, width)


def with_sign(vectors, reference=None):
    """The vectors with a reference's signs, or with a positive largest entry: signs that no solver decides."""
    reference = vectors if reference is None else reference
    index = reference.detach().abs().argmax(1, keepdim=True)
    signs = vectors.detach().gather(1, index).sign()
    return vectors * (signs if reference is vectors else signs * reference.detach().gather(1, index).sign())


def gradient(maps, rank, grads, reference=None, **options):
    """d/dmaps of sum(grads * vectors)."""
    maps = maps.detach().clone().requires_grad_()
    _, vectors = truncated_svd(maps, rank, **options)
    return torch.autograd.grad((with_sign(vectors, reference) * grads).sum(), maps)[0]


def columns(vectors):
    """One image's vectors as the oracle has them."""
    return [[float(x) for x in column] for column in vectors.mT]


@ranks
@shapes
def test_values_and_vectors_are_those_of_the_svd(shape, rank):
    maps = random_maps(3, *shape)
    sigma, vectors = truncated_svd(maps, rank)
    for b in range(3):
        expected_sigma, expected = oracle.truncated_svd(maps[b].numpy(), rank)
        np.testing.assert_allclose(sigma[b], expected_sigma, rtol=1e-12)
        overlap = [abs(oracle.dot(v, w)) for v, w in zip(columns(vectors[b]), expected, strict=True)]
        np.testing.assert_allclose(overlap, 1, atol=1e-12)
        np.testing.assert_allclose(vectors[b].norm(dim=0), 1, atol=1e-12)


def test_1_gradient_of_a_diagonal_matrix():
    a, b = 3.0, 2.0
    maps = torch.tensor([[[[a, 0.0]], [[0.0, b]]]], dtype=torch.float64, requires_grad=True)
    _, vectors = truncated_svd(maps, 1)
    (vectors[0, 1, 0] * vectors[0, 0, 0].detach().sign()).backward()
    expected = torch.tensor([[0.0, a], [b, 0.0]], dtype=torch.float64) / (a**2 - b**2)
    torch.testing.assert_close(maps.grad[0, :, 0, :].T, expected, rtol=1e-12, atol=1e-12)


def test_2_one_position():
    maps = random_maps(4, 7, 1, 1) + 0.1
    m, grads = maps[..., 0], random_maps(4, 7, 1, 1, seed=1)[..., 0]
    v = m / m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(with_sign(truncated_svd(maps, 3)[1]), v)
    expected = (grads - v * (v * grads).sum(1, keepdim=True)) / m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(gradient(maps, 1, grads)[..., 0], expected)


@ranks
@shapes
def test_3_gradcheck(shape, rank):
    maps = random_maps(1, *shape).requires_grad_()

    def both(maps):
        sigma, vectors = truncated_svd(maps, rank)
        return sigma, with_sign(vectors)

    assert gradcheck(both, maps, fast_mode=math.prod(shape) > 100)


@ranks
@pytest.mark.parametrize("shape", [(7, 4, 3), (12, 3, 3), (24, 5, 6), (30, 4, 6)], ids=str)
def test_3_gradcheck_of_rank_deficient_maps(shape, rank):
    maps = random_maps(1, *shape, ranks=4).requires_grad_()
    assert gradcheck(lambda maps: with_sign(truncated_svd(maps, rank)[1]), maps, fast_mode=math.prod(shape) > 100)


@ranks
@shapes
def test_3_gradient_is_the_perturbation_formula(shape, rank):
    maps = random_maps(2, *shape)
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = gradient(maps, rank, grads, vectors)
    for b in range(2):
        expected = oracle.svd_gradient(maps[b].numpy(), columns(vectors[b]), columns(grads[b]))
        assert np.linalg.norm(ours[b] - expected) < 1e-9 * np.linalg.norm(expected)


@ranks
@pytest.mark.parametrize("shape", [(5, 4, 3), (6, 2, 3), (40, 9, 7), (64, 8, 8)], ids=str)
def test_3_gradient_is_autograds_where_that_is_valid(shape, rank):
    maps = random_maps(3, *shape)
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = maps.clone().requires_grad_()
    through_eigh = torch.linalg.eigh(leaf.flatten(2) @ leaf.flatten(2).mT)[1].flip(2)[..., :rank]
    through_svd = torch.linalg.svd(leaf.flatten(2).mT, full_matrices=False)[2].mT[..., :rank]
    ours = gradient(maps, rank, grads, vectors)
    for theirs in (through_eigh, through_svd):
        expected = torch.autograd.grad((with_sign(theirs, vectors) * grads).sum(), leaf)[0]
        assert (ours - expected).norm() < 1e-10 * expected.norm()


def test_3_gradient_of_the_singular_values_alone():
    maps = random_maps(2, 6, 4, 4).requires_grad_()
    sigma, _ = truncated_svd(maps, 6)
    nuclear = torch.linalg.matrix_norm(maps.flatten(2), "nuc").sum()
    torch.testing.assert_close(*(torch.autograd.grad(x, maps)[0] for x in (sigma.sum(), nuclear)))


@shapes
def test_4_gradient_is_orthogonal_to_the_map(shape):
    maps = random_maps(5, *shape)
    grads = torch.randn(5, shape[0], 3, dtype=torch.float64)
    result = gradient(maps, 3, grads)
    assert (
        (result * maps).sum((1, 2, 3)).abs() < 1e-10 * result.flatten(1).norm(dim=1) * maps.flatten(1).norm(dim=1)
    ).all()


def dfvs(front, back, rank=2):
    return rbf(
        *(canonical_signs(v) * feature_weights(s)[:, None] for s, v in (truncated_svd(m, rank) for m in (front, back)))
    )


def test_5_dfv_invariant_to_scale_orthogonal_mixing_of_positions_and_upsampling():
    front, back = random_maps(2, 5, 4, 6), random_maps(2, 7, 2, 3, seed=1)
    expected = dfvs(front, back)
    rotation = torch.linalg.qr(random_maps(24, 24, seed=2) - 0.3)[0]
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    same = {
        "scale": 3.7 * front,
        "rotation": (front.flatten(2) @ rotation).view_as(front),
        "permutation": front.flatten(2)[..., shuffle].view_as(front),
        "upsampling": F.interpolate(front, scale_factor=3, mode="nearest"),
        "transposed": front.mT,
    }
    for name, changed in same.items():
        torch.testing.assert_close(dfvs(changed, back), expected, msg=lambda text, name=name: f"{name}: {text}")
    assert not torch.allclose(dfvs(front.flip(1), back), expected)


@pytest.mark.parametrize("shape", [(8, 5, 5), (30, 4, 5), (64, 8, 8)], ids=str)
def test_6_first_vector_behind_a_relu_is_not_negative(shape):
    for dtype, slack in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        maps = random_maps(20, *shape, dtype=dtype)
        assert canonical_signs(truncated_svd(maps, 1)[1]).min() >= -slack


def test_7_range_of_dfv():
    front, back = random_maps(50, 4, 3, 3) - 0.4, random_maps(50, 5, 3, 3, seed=1) - 0.4
    values = dfvs(front, back, 4)
    assert values.min() >= math.exp(-1 / 2)
    assert values.max() <= 1
    assert dfvs(front.relu(), back.relu(), 1).min() >= math.exp(-1 / 8)
    corner = torch.tensor([[[1.0], [0.0]]])
    assert rbf(corner, -corner).min().item() == pytest.approx(math.exp(-1 / 2))


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
    """A teacher's maps, and a student's that are somewhat like them."""
    mixing = torch.Generator().manual_seed(9)
    theirs = [random_maps(batch, *shape, seed=i, dtype=dtype) for i, shape in enumerate(teacher)]
    own = []
    for their, (depth, height, width) in zip(theirs, student, strict=True):
        like = F.adaptive_avg_pool2d(their, (height, width)) + 0.3 * torch.randn(
            batch, depth, height, width, generator=mixing, dtype=dtype
        )
        own.append(like.relu())
    return theirs, own


def loss_of(theirs, own, **options):
    shapes = [[tuple(m.shape[1:]) for m in maps] for maps in (theirs, own)]
    loss = SVD(**options).build(pairs_of(*shapes))
    return loss(reading(own), loss.target(reading(theirs)))


OPTIONS = [
    {}, {"rank": 2}, {"rank": 3, "alignment": "hungarian"}, {"rank": 2, "reduction": "mean"},
    {"rank": 2, "sqrt_rank": True}, {"beta": 0.5}, {"rank": 50},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_is_the_papers(options):
    theirs, own = networks()
    given = dict(options)
    expected = oracle.transfer_loss(
        [m.numpy() for m in theirs], [m.numpy() for m in own], [(0, 1), (1, 2)], given.pop("rank", 1),
        matching=given.pop("alignment", "greedy"), **given,
    )  # fmt: skip
    assert expected > 1e-4
    assert loss_of(theirs, own, **options).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ([(5, 3, 3), (6, 3, 3), (8, 2, 3)], [(5, 3, 3), (6, 1, 1), (8, 1, 1)]),
        ([(3, 4, 4), (6, 1, 2), (8, 3, 3)], [(3, 4, 4), (6, 4, 2), (8, 3, 3)]),
        ([(5, 2, 1), (2, 4, 4), (7, 2, 2)], [(5, 3, 3), (2, 4, 4), (7, 5, 1)]),
    ],
    ids=["student's size", "teacher's size", "channels"],
)
def test_small_maps_lower_the_rank_of_their_modules_alone(teacher, student):
    theirs, own = ([m - 0.3 for m in maps] for maps in networks(teacher=teacher, student=student))
    arrays = [[m.numpy() for m in maps] for maps in (theirs, own)]
    expected = oracle.transfer_loss(*arrays, [(0, 1), (1, 2)], 4)
    assert loss_of(theirs, own, rank=4).item() == pytest.approx(expected, rel=1e-9)


def test_canonical_signs():
    # a tie; a negative sum; positive by more than rounding; a tie up to rounding
    given = [[0.6, -0.8, 0.2], [-0.8, 0.6, -0.1], [0.1, -0.5, 0.41], [-0.8, 0.3, 0.5000001]]
    expected = [[-0.6, 0.8, -0.2], [0.8, -0.6, 0.1], [0.1, -0.5, 0.41], [0.8, -0.3, -0.5000001]]
    torch.testing.assert_close(canonical_signs(torch.tensor([given]).mT), torch.tensor([expected]).mT)
    for b in range(3):
        vectors = random_maps(3, 5, 1, 4, seed=b)[:, :, 0] - 0.4
        ours = canonical_signs(vectors)
        assert [columns(v) for v in ours] == [[oracle.canonical(c) for c in columns(v)] for v in vectors]


@pytest.fixture
def scramble(monkeypatch):
    """Make the solver return other signs, as another LAPACK may; ``order`` also turns the vectors' order round."""
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
def test_8_no_loss_where_the_student_is_the_teacher(scramble, rank, alignment):
    theirs, _ = networks()
    theirs = [m - 0.3 for m in theirs]
    assert loss_of(theirs, theirs, rank=rank, alignment=alignment).item() < 1e-24
    scramble(teacher=True, student=True, order=True)
    assert loss_of(theirs, theirs, rank=rank, alignment=alignment).item() < 1e-24


def test_9_signs_of_the_solver_change_nothing(scramble):
    theirs, own = ([m - 0.3 for m in maps] for maps in networks())
    plain = loss_of(theirs, own, rank=3)
    scramble(teacher=True, student=True)
    for _ in range(3):
        torch.testing.assert_close(loss_of(theirs, own, rank=3), plain, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("signs", "invariant"), [("paper", "student"), ("official", "teacher")])
def test_9_without_canonical_signs_the_loss_depends_on_one_side(scramble, signs, invariant):
    theirs, own = ([m - 0.3 for m in maps] for maps in networks())
    plain = loss_of(theirs, own, rank=3, signs=signs)
    scramble(teacher=invariant == "teacher", student=invariant == "student")
    torch.testing.assert_close(loss_of(theirs, own, rank=3, signs=signs), plain, rtol=1e-12, atol=0)
    scramble(teacher=invariant != "teacher", student=invariant != "student")
    assert abs(loss_of(theirs, own, rank=3, signs=signs) - plain) > 1e-3 * plain


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_10_permuted_and_flipped_vectors_are_aligned(matching):
    teacher = torch.linalg.qr(torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0)))[0]
    student = teacher[..., [3, 0, 4, 2, 1]] * torch.tensor([1, -1, -1, 1, -1])
    assert torch.equal(align(teacher, student, matching), teacher)
    assert torch.equal(align(teacher[..., :2], student, matching), teacher[..., :2])


@pytest.mark.parametrize("matching", ["greedy", "hungarian"])
def test_alignment_is_the_papers(matching):
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        F.normalize(torch.randn(30, 6, m, generator=generator, dtype=torch.float64), dim=1) for m in (3, 4)
    )
    chosen, signs = match(teacher, student, matching)
    for b in range(30):
        expected = oracle.alignment(columns(teacher[b]), columns(student[b]), matching)
        assert torch.equal(chosen[b], student[b][:, expected])
    assert torch.equal(signs[:, 0], (teacher * chosen).sum(1).sign())


def test_greedy_takes_a_vector_twice_where_hungarian_does_not():
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    student = torch.tensor([[[0.6, 0.8], [-0.8, 0.6]]])[..., [0, 1]] @ torch.diag(torch.tensor([1.0, 0.1]))
    assert torch.equal(match(teacher, student)[0], student[..., [0, 0]])
    assert torch.equal(match(teacher, student, "hungarian")[0], student[..., [1, 0]])


def test_orthogonal_vectors_have_sign_one():
    assert match(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]]))[1].item() == 1


def hopeless(depth, height, width, dtype):
    """Maps that have no unique singular vectors."""
    dead = random_maps(1, depth, height, width, dtype=dtype)
    dead[:, ::2] = 0
    one = torch.zeros_like(dead)
    one[0, 0, 0, 0] = 1
    count = min(depth, height * width)
    return {
        "dead channels": dead,
        "zeros": torch.zeros_like(dead),
        "tiny": dead * 1e-25,
        "constant": torch.ones_like(dead),
        "rank 1": one,
        "all equal": spectrum([2.0] * count, depth, height, width).to(dtype),
        "pairs": spectrum([2.0, 2.0, 1.0, 1.0, 0.5], depth, height, width).to(dtype) if count >= 5 else dead,
        "equal channels": dead[:, :1].expand(-1, depth, -1, -1),
    }


@ranks
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (24, 6, 6), (40, 5, 6)], ids=str)
def test_11_hopeless_maps_have_finite_values_and_gradients(shape, dtype, rank):
    cases = hopeless(*shape, dtype)
    good = random_maps(8, *shape, dtype=dtype)
    for maps in (*cases.values(), torch.cat([*cases.values(), good])):
        maps = maps.clone().requires_grad_()
        sigma, vectors = truncated_svd(maps, rank)
        (vectors * torch.linspace(-1, 1, vectors[0].numel(), dtype=dtype).view(vectors.shape[1:])).sum().add(
            sigma.sum()
        ).backward()
        assert vectors.isfinite().all()
        assert maps.grad.isfinite().all()
        assert (sigma.diff(dim=1) <= 0).all()
        norms = vectors.norm(dim=1)
        assert torch.allclose(norms, (norms > 0.5).to(dtype), atol=1e-5)


@ranks
@pytest.mark.parametrize("shape", [(6, 4, 4), (40, 5, 6)], ids=str)
def test_11_hopeless_company_does_no_harm(shape, rank):
    good = random_maps(8, *shape)
    everyone = torch.cat([*hopeless(*shape, torch.float64).values(), good])
    grads = torch.randn(len(everyone), shape[0], rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alone = gradient(good, rank, grads[-8:])
    torch.testing.assert_close(gradient(everyone, rank, grads)[-8:], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (24, 6, 6), (40, 5, 6)], ids=str)
def test_11_vectors_without_energy_are_zero(shape):
    for dtype in (torch.float64, torch.float32):
        sigma, vectors = truncated_svd(random_maps(4, *shape, dtype=dtype, ranks=2), 4)
        assert (vectors[..., :2].norm(dim=1) - 1).abs().max() < 1e-5
        assert (vectors[..., 2:] == 0).all()
        assert (sigma[:, 2:] < 1e-4 * sigma[:, :1]).all()


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (30, 6, 6), (40, 5, 6)], ids=str)
def test_11_the_span_of_repeated_singular_values_has_its_gradient(shape):
    # v_1, v_2 are not determined, but the projection on them is; its true gradient needs the 1/0 terms to cancel.
    maps = spectrum([2.0, 2.0, 1.0, 0.5, 0.3], *shape).requires_grad_()

    def projection(maps):
        vectors = truncated_svd(maps, 2)[1]
        return vectors @ vectors.mT

    assert gradcheck(projection, maps, fast_mode=True)


@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (40, 5, 6)], ids=str)
def test_11_only_what_squares_to_nothing_counts_as_a_map_of_zeros(shape):
    for dtype, small in ((torch.float32, 1e-12), (torch.float64, 1e-25)):
        maps = random_maps(3, *shape, dtype=dtype)
        sigma, vectors = truncated_svd(maps, 2)
        faint_sigma, faint = truncated_svd(maps * small, 2)
        torch.testing.assert_close(faint_sigma / small, sigma)
        torch.testing.assert_close(with_sign(faint, vectors), vectors, rtol=0, atol=1e-4)
    assert (truncated_svd(maps.float() * 1e-25, 2)[1] == 0).all()


def test_11_loss_of_hopeless_maps_is_finite_and_zero_without_energy():
    for case in hopeless(24, 6, 6, torch.float32).values():
        theirs, own = case.expand(2, -1, -1, -1), case.expand(2, -1, -1, -1).clone().requires_grad_()
        other = random_maps(2, 24, 6, 6, seed=5, dtype=torch.float32)
        for pair in (
            ([theirs, other], [own, other.clone()]),
            ([other, other], [own, own]),
            ([theirs, theirs], [own, other]),
        ):
            loss = loss_of(*pair, rank=3)
            (grad,) = torch.autograd.grad(loss, own)
            assert loss.isfinite()
            assert grad.isfinite().all()
    zeros = torch.zeros(2, 6, 4, 4)
    some = random_maps(2, 6, 4, 4, dtype=torch.float32)
    assert loss_of([zeros, some], [some, some.flip(1)]).item() == 0
    assert loss_of([some, some], [zeros, some.flip(1)]).item() == 0


def test_not_a_number_stays_in_its_image():
    for shape in [(6, 4, 4), (40, 5, 6)]:
        maps = random_maps(3, *shape, dtype=torch.float32)
        maps[1, 2, 0, 0] = torch.nan
        maps = maps.requires_grad_()
        sigma, vectors = truncated_svd(maps, 2)
        vectors.square().sum((1, 2))[[0, 2]].sum().backward()
        assert sigma[1].isnan().all()
        assert vectors[1].isnan().all()
        assert vectors[[0, 2]].isfinite().all()
        assert maps.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shape", [(5, 4, 3), (24, 6, 6)], ids=str)
def test_12_equations_1_and_2_are_zero_for_rank_1_on_tall_maps(shape):
    maps = random_maps(3, *shape)
    grads = torch.randn(3, shape[0], 1, dtype=torch.float64)
    assert (gradient(maps, 1, grads, gradient="paper") == 0).all()
    assert gradient(maps, 1, grads).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(6, 4, 4), (12, 3, 2), (6, 2, 3)], ids=str)
def test_12_equations_1_and_2_as_printed(shape, rank):
    maps = random_maps(2, *shape) - 0.3
    vectors = truncated_svd(maps, rank)[1]
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = gradient(maps, rank, grads, vectors, gradient="paper")
    for b in range(2):
        expected = oracle.paper_gradient(maps[b].numpy(), columns(vectors[b]), columns(grads[b]))
        np.testing.assert_allclose(ours[b], expected, atol=1e-10)
    exact = gradient(maps, rank, grads, vectors)
    if rank == min(shape[0], shape[1] * shape[2]):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-9)
    else:
        assert (ours - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(16, 16, 16), (64, 8, 8), (128, 4, 8)], ids=str)
def test_float32_and_half_inputs_are_as_good_as_float32_can_be(shape, dtype):
    maps = random_maps(16, *shape, seed=3, dtype=dtype)  # half precision is the input, not an error
    sigma, vectors = truncated_svd(maps, 2)
    assert sigma.dtype == vectors.dtype == torch.float32
    grads = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact_sigma, exact = truncated_svd(maps.double(), 2)
    values = torch.linalg.svdvals(maps.double().flatten(2))[:, :3].square()
    gap = torch.stack([values[:, 0] - values[:, 1], (values[:, :2] - values[:, 1:]).amin(1)], 1) / values[:, :1]
    assert ((sigma - exact_sigma) / exact_sigma).abs().max() < 3e-6
    error = (with_sign(vectors, exact) - exact).norm(dim=1)
    assert (error < 4e-6 / gap).all()
    ours, reference = (
        gradient(m, 2, grads.to(m.dtype) if m.dtype != torch.float64 else grads, exact.to(vectors.dtype))
        for m in (maps.float(), maps.double())
    )
    relative = (ours - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)
    assert (relative < 1e-5 / gap[:, 1]).all()
    assert truncated_svd(maps.requires_grad_(), 2)[1].sum().backward() is None
    assert maps.grad.dtype == dtype


def test_alignment_under_autocast_tells_cosines_apart():
    angles = torch.tensor([0.7, 0.701, 0.699])
    student = torch.stack([angles.cos(), angles.sin()])[None]
    teacher = torch.tensor([[[1.0], [0.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(align(teacher, student), student[..., 2:])


def test_autocast_does_not_touch_it():
    theirs, own = networks(dtype=torch.float32)
    own = [m.requires_grad_() for m in own]
    plain = loss_of(theirs, own, rank=2)
    expected = torch.autograd.grad(plain, own)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(theirs, own, rank=2)
        grads = torch.autograd.grad(loss, own)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=0, atol=0)
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)


def test_bf16_maps_give_the_loss_of_their_rounded_values():
    theirs, own = ([m.bfloat16() for m in maps] for maps in networks(8))
    expected = oracle.transfer_loss(
        [m.double().numpy() for m in theirs], [m.double().numpy() for m in own], [(0, 1), (1, 2)], 2
    )
    loss = loss_of(theirs, own, rank=2)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_memory_layout_does_not_matter():
    maps = random_maps(3, 24, 5, 6)
    for a, b in zip(
        truncated_svd(maps, 3), truncated_svd(maps.contiguous(memory_format=torch.channels_last), 3), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [16, 40, 65])
def test_block_iteration_finds_what_a_full_decomposition_finds(size, count):
    generator = torch.Generator().manual_seed(0)
    decay = torch.logspace(0, -2, size, dtype=torch.float64)
    values = [decay, decay.clone(), torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64),
              torch.linspace(1, 0.9, size, dtype=torch.float64), decay.clone()]  # fmt: skip
    values[1][count - 1 : count + 2] = values[1][count - 1]  # the last that is wanted, three times over
    values[5][3:] = 0
    basis = torch.linalg.qr(torch.randn(len(values), size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.stack(values)
    values = values / values.sum(1, keepdim=True).clamp_min(1e-30)
    gram = basis @ (values[:, :, None] * basis.mT)
    found, rows = eigen.leading_pairs(gram, count)
    torch.testing.assert_close(found[:, :count], values[:, :count], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        rows @ rows.mT, torch.eye(rows.shape[1], dtype=torch.float64).expand(len(values), -1, -1)
    )
    wanted = rows[:, :count]
    assert (wanted @ gram - found[:, :count, None] * wanted).norm(dim=2).max() < 1e-13


def test_damped_inverse_is_the_inverse_on_the_rest():
    gram = random_maps(12, 30, 6, 6).flatten(2)
    gram = gram @ gram.mT
    gram = gram / gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    values, rows = eigen.leading_pairs(gram, 3)
    assert rows.shape[1] < 30
    right = torch.randn(12, 3, 30, dtype=torch.float64)
    right = right - (right * rows[:, :3]).sum(2, keepdim=True) * rows[:, :3]
    damping = torch.full((12, 1, 1), 1e-12, dtype=torch.float64)
    solved = eigen.damped_inverse(gram, values, rows, right, damping, torch.zeros(12, 3, 1, dtype=torch.float64))
    for j in range(3):
        shifted = values[:, j, None, None] * torch.eye(30, dtype=torch.float64) - gram
        expected = torch.linalg.pinv(shifted, hermitian=True, rtol=1e-11) @ right[:, j, :, None]
        torch.testing.assert_close(solved[:, j], expected[..., 0], rtol=1e-8, atol=1e-8)


def test_a_tap_of_two_sections_is_decomposed_once(monkeypatch):
    calls = []
    real = truncated_svd
    monkeypatch.setattr(svd, "truncated_svd", lambda maps, *a, **k: calls.append(maps) or real(maps, *a, **k))
    theirs, own = networks()
    loss_of(theirs, own)
    assert len(calls) == len({id(m) for m in calls}) == 6


def test_target_is_the_teachers_alone_without_gradient_and_may_be_stored_in_half_precision():
    theirs, own = networks(8, dtype=torch.float32)
    theirs = [m.requires_grad_() for m in theirs]
    loss = SVD(rank=2).build(pairs_of(TEACHER, STUDENT))
    assert loss.storable
    assert loss.reduction == "sum"
    assert SVD(reduction="mean").build(pairs_of(TEACHER, STUDENT)).reduction == "mean"
    assert loss.teacher_taps == loss.student_taps == tuple(TAPS)
    target = loss.target(reading(theirs))
    assert [tuple(t.shape) for t in target] == [(8, 6, 2), (8, 2), (8, 8, 2), (8, 2), (8, 10, 2), (8, 2)]
    assert not any(t.requires_grad for t in target)
    one_by_one = [loss.target(reading([m[b : b + 1] for m in theirs])) for b in range(8)]
    live = loss(reading(own), target)
    again = loss(reading(own), tuple(torch.cat(parts) for parts in zip(*one_by_one, strict=True)))
    torch.testing.assert_close(again, live, rtol=1e-5, atol=0)
    half = loss(reading(own), tuple(t.half() for t in target))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, live, rtol=0.02, atol=0)


def test_the_mean_is_the_sum_over_the_batch_size():
    theirs, own = networks(5)
    torch.testing.assert_close(5 * loss_of(theirs, own, reduction="mean"), loss_of(theirs, own))
    assert dfv_loss(torch.zeros(0, 2, 2, 1), torch.zeros(0, 2, 2, 1), "mean") == 0


@pytest.mark.parametrize("rank", [1, 3])
def test_descent_makes_the_students_vectors_the_teachers(rank):
    theirs, own = networks(4, dtype=torch.float32)
    losses = []
    for _ in range(50):
        own = [m.detach().requires_grad_() for m in own]
        loss = loss_of(theirs, own, rank=rank)
        own = [m - 30 * g for m, g in zip(own, torch.autograd.grad(loss, own), strict=True)]
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_gradient_of_the_loss_by_finite_differences():
    theirs, own = networks(2)
    leaf = [m.requires_grad_() for m in own]
    assert gradcheck(lambda *own: loss_of(theirs, own, rank=2), leaf, fast_mode=True)


def test_errors_say_what_is_wrong():
    with pytest.raises(ShapeError, match=r"not \(2, 3, 4\)"):
        truncated_svd(torch.zeros(2, 3, 4), 1)
    with pytest.raises(ShapeError, match=r"\(2, 3, 0, 4\)"):
        truncated_svd(torch.zeros(2, 3, 0, 4), 1)
    with pytest.raises(ValueError, match="rank 0"):
        truncated_svd(torch.zeros(2, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="'exact' or 'paper'"):
        truncated_svd(torch.zeros(2, 3, 4, 4), 1, gradient="papr")
    with pytest.raises(ShapeError, match="images and channels"):
        align(torch.zeros(2, 3, 1), torch.zeros(2, 4, 2))
    with pytest.raises(ShapeError, match="at least as many"):
        align(torch.zeros(2, 3, 2), torch.zeros(2, 3, 1))
    with pytest.raises(ShapeError, match="at least one pair"):
        SVD().build(())
    narrow = [(6, 3, 3), (7, 4, 4), (10, 3, 3)]
    with pytest.raises(ShapeError, match=r"x1 in the teacher has 8 channels, x1 in the student 7.*'attention'"):
        SVD().build(pairs_of(TEACHER, narrow))
    with pytest.raises(ValueError, match="there is none"):
        SVD().build(pairs_of(TEACHER, STUDENT)).target(None)


def test_as_a_recipe_says_it():
    assert parse_knowledge("svd") == SVD(rank=1, beta=8.0, reduction="sum", alignment="greedy", sqrt_rank=False)
    assert parse_knowledge({"name": "svd", "rank": 4, "signs": "official"}).rank == 4
    for wrong in ({"rank": 0}, {"beta": 0}, {"alignment": "hungary"}, {"reduction": "avg"}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            parse_knowledge({"name": "svd", **wrong})
