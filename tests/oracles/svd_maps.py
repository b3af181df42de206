"""Feature maps to decompose, well-conditioned and hopeless, and what makes their decompositions comparable."""

import torch


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
    left, right = (
        torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64))[0]
        for n in (height * width, depth)
    )
    m = left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT
    return m.T.reshape(1, depth, height, width)


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


def with_sign(vectors, reference=None):
    """The vectors with a reference's signs, or with a positive largest entry: signs that no solver decides."""
    reference = vectors if reference is None else reference
    index = reference.detach().abs().argmax(1, keepdim=True)
    signs = vectors.detach().gather(1, index).sign()
    return vectors * (signs if reference is vectors else signs * reference.detach().gather(1, index).sign())


def gradient(decompose, maps, rank, grads, reference=None, **options):
    """d/dmaps of sum(grads * vectors), the vectors with a reference's signs."""
    maps = maps.detach().clone().requires_grad_()
    _, vectors = decompose(maps, rank, **options)
    return torch.autograd.grad((with_sign(vectors, reference) * grads).sum(), maps)[0]


def columns(vectors):
    """One image's vectors as the oracle has them."""
    return [[float(x) for x in column] for column in vectors.mT]
