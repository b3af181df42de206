import torch

from flowstill.data.keyed import Purpose, below, bits, key_of, uniform


def test_bits_are_the_published_sequence_of_splitmix64():
    # First outputs for seed 0 and seed 1234567, from the generator's reference implementation.
    zero = [int(b) % 2**64 for b in bits(0, torch.arange(4))]
    assert zero == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    other = [int(b) % 2**64 for b in bits(1234567, torch.arange(3))]
    assert other == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def python_bits(key: int, *counters: int) -> int:
    """The same in unbounded integers."""
    mask, state = 2**64 - 1, key & (2**64 - 1)
    for counter in counters:
        state = (state + (counter + 1) * 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_bits_agree_with_unbounded_integers():
    for key in (0, -1, 2**63, 2**64 - 1, 987654321):
        for counters in ((0,), (5, 7), (2**40, 3, 11)):
            made = bits(key, *(torch.tensor(c) for c in counters))
            assert int(made) % 2**64 == python_bits(key, *counters)


def test_counters_broadcast_and_each_image_has_its_own_numbers():
    table = bits(3, torch.arange(5), torch.arange(4)[:, None])
    assert table.shape == (4, 5)
    for draw in range(4):
        for image in range(5):
            assert table[draw, image] == bits(3, torch.tensor(image), torch.tensor(draw))
    assert len(set(table.flatten().tolist())) == 20


def test_uniform_and_below_fill_their_ranges_evenly():
    random = bits(1, torch.arange(100_000))
    shares = uniform(random)
    assert shares.min() >= 0
    assert shares.max() < 1
    # 5 standard errors of a uniform mean
    assert abs(float(shares.mean()) - 0.5) < 5 * (1 / 12) ** 0.5 / 100_000**0.5
    counts = below(random, 7).bincount()
    assert len(counts) == 7
    expected = 100_000 / 7
    assert float(((counts - expected) ** 2 / expected).sum()) < 25  # chi-square, 6 degrees: p = 0.0003


def test_seeds_and_purposes_give_different_keys():
    keys = {key_of(seed, purpose) for seed in (*range(-5, 50), 2**63, 2**64 + 1) for purpose in Purpose}
    # 2**64 + 1 is 1 modulo 2**64: the one seed that is not new
    assert len(keys) == 56 * len(Purpose)
