import numpy as np
import pytest
import torch
from PIL import Image

from flowstill.data import Augment
from flowstill.data.augment import Drawn, changed, draw

MEAN, STD = torch.tensor([100.0, 120.0, 140.0]), torch.tensor([50.0, 60.0, 70.0])
ALL = Augment(crop=2, flip=True, shift=3, rotate=40)


def some_images(count: int, height: int = 9, width: int = 12, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Every pixel by itself; what comes in is zero."""
    _, height, width = image.shape
    result = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                result[:, y + down, x + right] = image[:, y, x]
    return result


def cropped(image: np.ndarray, padding: int, down: int, right: int) -> np.ndarray:
    """Pad, then cut the original size out."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    return padded[:, padding - down : padding - down + height, padding - right : padding - right + width]


def one_by_one(pixels: torch.Tensor, drawn: Drawn, padding: int) -> torch.Tensor:
    """The changes of each image by Pillow and numpy, in float64."""
    results = []
    for image, flip, angle, ((crop_y, crop_x), (shift_y, shift_x)) in zip(
        pixels.numpy(), drawn.flip, drawn.angle.tolist(), drawn.move.tolist(), strict=True
    ):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        if flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        inside = np.asarray(Image.new("L", picture.size, 1).rotate(angle, Image.Resampling.NEAREST))
        turned = np.asarray(picture.rotate(angle, Image.Resampling.NEAREST)).transpose(2, 0, 1)
        normalised = (turned - MEAN.numpy()[:, None, None].astype(float)) / STD.numpy()[:, None, None] * inside
        results.append(moved(cropped(normalised, padding, crop_y, crop_x), shift_y, shift_x))
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop=4),
        Augment(flip=True),
        Augment(shift=3),
        Augment(rotate=15),
        Augment(rotate=180),
        Augment(crop=4, flip=True),
        Augment(crop=2, shift=5),
        ALL,
    ],
)
@pytest.mark.parametrize("size", [(9, 12), (8, 8), (7, 5)])
def test_a_batch_is_augmented_like_single_images(augment, size):
    pixels = some_images(60, *size)
    drawn = draw(augment, 3, torch.arange(60), torch.zeros(60, dtype=torch.int64))
    made = changed(pixels, drawn, MEAN, STD)
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    torch.testing.assert_close(made.double(), one_by_one(pixels, drawn, augment.crop), rtol=1e-6, atol=1e-6)


def test_a_quarter_turn_is_counter_clockwise():
    pixels = some_images(1, 8, 8)
    drawn = Drawn(torch.tensor([False]), torch.tensor([90.0]), torch.zeros(1, 2, 2, dtype=torch.int64))
    plain = changed(pixels, None, MEAN, STD)
    assert changed(pixels, drawn, MEAN, STD).equal(plain.rot90(1, (2, 3)))


def test_without_augmentation_images_are_only_normalised():
    pixels = some_images(5)
    assert draw(Augment(), 0, torch.arange(5), torch.zeros(5, dtype=torch.int64)) is None
    expected = (pixels.double() - MEAN.double().view(3, 1, 1)) / STD.double().view(3, 1, 1)
    torch.testing.assert_close(changed(pixels, None, MEAN, STD).double(), expected, rtol=1e-6, atol=1e-6)


def test_borders_are_filled_with_the_mean_colour_not_black():
    drawn = Drawn(torch.tensor([False]), torch.zeros(1, dtype=torch.float64), torch.tensor([[[2, 0], [0, -1]]]))
    made = changed(some_images(1) // 2, drawn, MEAN, STD)
    assert made[:, :, :2].eq(0).all()
    assert made[:, :, :, -1].eq(0).all()
    assert made[:, :, 2:, :-1].ne(0).any()


def test_changes_depend_on_seed_epoch_and_index_alone():
    index, epoch = torch.tensor([4, 9, 4, 70_000, 4]), torch.tensor([0, 0, 1, 3, 0])
    pixels = some_images(5)
    whole = changed(pixels, draw(ALL, 11, index, epoch), MEAN, STD)
    for place in range(5):
        one = slice(place, place + 1)
        assert changed(pixels[one], draw(ALL, 11, index[one], epoch[one]), MEAN, STD).equal(whole[one])
    drawn = draw(ALL, 11, index, epoch)
    assert drawn.angle[0] == drawn.angle[4]
    assert len(set(drawn.angle.tolist())) == 4
    assert not draw(ALL, 12, index, epoch).angle.equal(drawn.angle)


def test_every_draw_is_uniform_and_independent():
    count = 20_000
    drawn = draw(Augment(crop=4, flip=True, shift=1, rotate=15), 0, torch.arange(count), torch.full((count,), 2))
    assert abs(int(drawn.flip.sum()) - count / 2) < 4 * (count / 4) ** 0.5
    for axis in range(2):
        crops = (drawn.move[:, 0, axis] + 4).bincount()
        assert len(crops) == 9
        assert float(((crops - count / 9) ** 2 / (count / 9)).sum()) < 29  # chi-square, 8 degrees: p = 0.0003
        shifts = (drawn.move[:, 1, axis] + 1).bincount()
        assert len(shifts) == 3
        assert float(((shifts - count / 3) ** 2 / (count / 3)).sum()) < 17  # 2 degrees: p = 0.0002
    assert drawn.angle.abs().max() <= 15
    assert drawn.angle.min() < -14.9
    assert drawn.angle.max() > 14.9
    assert abs(float(drawn.angle.mean())) < 4 * 15 / 3**0.5 / count**0.5
    columns = torch.stack([drawn.flip.double(), drawn.angle, *drawn.move.flatten(1).double().unbind(1)])
    correlation = columns.corrcoef() - torch.eye(6, dtype=torch.float64)
    assert correlation.abs().max() < 5 / count**0.5
    together = (drawn.move[:, 0, 0] + 4) * 9 + drawn.move[:, 0, 1] + 4
    pairs = together.bincount(minlength=81)
    assert float(((pairs - count / 81) ** 2 / (count / 81)).sum()) < 130  # 80 degrees: p = 0.0004


def test_consecutive_epochs_and_images_are_independent():
    flips = torch.stack(
        [draw(Augment(flip=True), 5, torch.arange(2000), torch.full((2000,), e)).flip for e in range(10)]
    )
    signs = flips.double() * 2 - 1
    across_epochs, across_images = (signs[1:] * signs[:-1]).mean(), (signs[:, 1:] * signs[:, :-1]).mean()
    assert abs(float(across_epochs)) < 5 / 18_000**0.5
    assert abs(float(across_images)) < 5 / 20_000**0.5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_augments_identically():
    pixels = some_images(256, 32, 32)
    drawn = draw(ALL, 0, torch.arange(256), torch.zeros(256, dtype=torch.int64))
    made = changed(pixels.cuda(), drawn, MEAN.cuda(), STD.cuda()).cpu()
    assert made.equal(changed(pixels, drawn, MEAN, STD))
