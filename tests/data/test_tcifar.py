import pickle
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image

from flowstill.data import Augment, Data, data_facts, open_data
from flowstill.data.distortion import DEVIATIONS, Distortion, blur_matrix, blurred, distortion
from flowstill.data.keyed import normal
from flowstill.errors import DataError, RecipeError
from oracles import distortion as oracle

KINDS = [
    {},
    {"distortion": "noise_255_sigma1"},
    {"distortion": "noise_norm_sigma1"},
    {"distortion": "noise_calibrated", "noise_sigma": 12.0},
]


def write_cifar10(root, pixels: np.ndarray) -> None:
    """``pixels``, (20, 32, 32, 3), as training images, the first ten of them as test images too; labels 0 to 9."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    files = {f"data_batch_{number + 1}": range(4 * number, 4 * number + 4) for number in range(5)}
    for name, chosen in (files | {"test_batch": range(10)}).items():
        content = {b"data": rows[list(chosen)], b"labels": [row % 10 for row in chosen]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def grey(tmp_path):
    """Twenty training images, of which the first ten are the test images too, every value 128."""
    write_cifar10(tmp_path, np.full((20, 32, 32, 3), 128, np.uint8))
    return str(tmp_path)


@pytest.fixture
def photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    write_cifar10(tmp_path, pixels)
    return str(tmp_path), torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def shown(data, images: torch.Tensor) -> torch.Tensor:
    """What the batches' images were before they were normalised, to the nearest of 0 to 255."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (data.mean, data.std))
    values = 255 * (images.double() * std + mean)
    assert (values - values.round()).abs().max() < 1e-3
    return values.round().long()


def training_images(data) -> tuple[torch.Tensor, list[int]]:
    (batch,) = data.train_batches("all", batch=20, steps=1)
    order = batch.index.argsort()
    return shown(data, batch.images[order]), batch.labels[order].tolist()


def test_images(data) -> tuple[torch.Tensor, list[int]]:
    ((images, labels),) = data.test_batches(batch=20)
    return shown(data, images), labels.tolist()


test_images.__test__ = False


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_unchanged_and_images_always_the_same(photographs, kind):
    root, clean = photographs
    data, again = open_data(Data("tcifar10", root=root, **kind)), open_data(Data("tcifar10", root=root, **kind), seed=9)
    images, labels = training_images(data)
    assert images.equal(training_images(again)[0])
    assert data.fingerprint == again.fingerprint
    assert data.fingerprint != open_data(Data("cifar10", root=root)).fingerprint
    assert labels == list(range(10)) * 2
    assert test_images(data)[1] == list(range(10))
    assert data.classes[:2] == ("airplane", "automobile")
    changed = (images != clean).double().flatten(1).mean(1)
    assert changed.min() > 0.5


def test_noise_of_training_and_test_images_and_of_any_two_rows_differs(grey):
    data = open_data(Data("tcifar10", root=grey, distortion="noise_calibrated", noise_sigma=12.0))
    train, test = training_images(data)[0].double() - 128, test_images(data)[0].double() - 128
    rows = torch.cat([train, test]).flatten(1)
    assert (torch.corrcoef(rows) - torch.eye(30)).abs().max() < 0.12  # 3072 values: six deviations


@pytest.mark.parametrize(
    ("kind", "sigmas"),
    [(KINDS[1], (1, 1, 1)), (KINDS[2], (62.99, 62.09, 66.70)), (KINDS[3], (12, 12, 12))],
)
def test_noise_has_its_deviation_after_clipping_and_rounding(grey, kind, sigmas):
    images = training_images(open_data(Data("tcifar10", root=grey, **kind)))[0].double()
    assert images.min() >= 0
    assert images.max() <= 255
    for channel, sigma in enumerate(sigmas):
        mean, deviation = oracle.clipped_moments(128, sigma)
        values = images[:, channel]
        assert abs(float(values.mean()) - mean) < 5 * deviation / values.numel() ** 0.5
        assert float(values.std()) == pytest.approx(deviation, rel=0.02)  # 20 480 values: four deviations


def test_blur_is_the_naive_loop_rounded(photographs):
    root, clean = photographs
    images = training_images(open_data(Data("tcifar10", root=root)))[0]
    assert images.equal(training_images(open_data(Data("tcifar10", root=root, distortion="blur_sigma1")))[0])
    for channel in (0, 2):
        values = oracle.blurred(clean[3, channel].tolist())
        assert images[3, channel].tolist() == [[round(value) for value in row] for row in values]


def test_blur_in_float64_and_its_weights():
    values = np.random.default_rng(1).uniform(0, 255, (5, 7, 2))
    for channel in range(2):
        expected = np.array(oracle.blurred(values[..., channel].tolist()))
        assert np.abs(blurred(values)[..., channel] - expected).max() < 1e-11
    assert np.abs(blur_matrix(32).sum(1) - 1).max() < 1e-15
    assert (blur_matrix(32) == blur_matrix(32)[::-1, ::-1]).all()
    assert blur_matrix(32)[16, 17] / blur_matrix(32)[16, 16] == pytest.approx(np.exp(-0.5), rel=1e-12)
    flat = Image.new("RGB", (9, 6), (0, 77, 255))
    assert Distortion(0)(flat, 0).tobytes() == flat.tobytes()


def test_a_half_is_rounded_to_the_even_value(monkeypatch):
    monkeypatch.setattr(Distortion, "_noise", lambda self, shape, row: np.array([0.5, 1.5, -2.5] * 3).reshape(shape))
    image = Image.fromarray(np.array([[[0, 0, 0], [1, 1, 1], [255, 255, 255]]], np.uint8))
    noisy = np.asarray(Distortion(0, (1.0, 1.0, 1.0))(image, 0))
    assert noisy.tolist() == [[[0, 2, 0], [2, 2, 0], [255, 255, 252]]]


def test_random_areas_are_cut_from_the_distorted_images(grey):
    spec = Data("tcifar10", root=grey, size=32, augment=Augment(resized_crop=True), workers=0, **KINDS[3])
    streamed, clean = open_data(spec), open_data(Data("cifar10", root=grey, size=32, augment=spec.augment, workers=0))
    assert streamed.fingerprint != clean.fingerprint
    (batch,) = streamed.train_batches("all", batch=20, steps=1)
    assert float((batch.images * torch.tensor(streamed.std).view(-1, 1, 1) * 255).std()) > 2  # of flat images: noise


def test_tcifar_in_other_forms(grey):
    assert data_facts("tcifar100") == data_facts("cifar100")
    assert open_data(Data("synthetic:tcifar10", distortion="noise_255_sigma1")).shape == (3, 32, 32)
    data = open_data(Data("tcifar10", root=grey, channels=1, size=16, **KINDS[3]))
    assert data.shape == (1, 16, 16)
    held = open_data(Data("tcifar10", root=grey, hold_out=10, **KINDS[3]))
    whole = open_data(Data("tcifar10", root=grey, **KINDS[3]))
    rows = held._test_rows
    assert test_images(held)[0].equal(training_images(whole)[0][rows])


def test_the_hub_and_messages_use_the_name_of_the_source_set(tmp_path):
    with pytest.raises(DataError, match=r"holds no data set 'cifar100'.*expected train \(cifar\), or train.parquet"):
        open_data(Data("tcifar100", root=str(tmp_path)))
    assert distortion(Data("cifar100"), 0) is None
    assert distortion(Data("tcifar100", distortion="noise_norm_sigma1"), 1) == Distortion(1, DEVIATIONS["cifar100"])


def test_normal_numbers_are_quantiles_of_uniform_ones():
    least, largest = normal(torch.tensor([0, -1])).tolist()  # as numbers without a sign
    assert -9 < least < -8
    assert least == pytest.approx(-largest)
    numbers = torch.arange(-512, 512) * 2**54 + 2**53
    expected = [NormalDist().inv_cdf(number % 2**64 / 2**64) for number in numbers.tolist()]
    assert normal(numbers).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "cifar100", "distortion": "blur_sigma1"}, "are for tcifar10 and tcifar100, not 'cifar100'"),
        ({"name": "tcifar100", "distortion": "noise_calibrated"}, "'noise_sigma' go together"),
        ({"name": "tcifar100", "noise_sigma": 3.0}, "'noise_sigma' go together"),
        ({"name": "tcifar100", "distortion": "blur"}, "blur_sigma1"),
        ({"name": "tcifar100", "distortion": "noise_calibrated", "noise_sigma": 0.0}, "more than 0"),
        ({"name": "cifar100", "mean": [1, 2, 3]}, "'mean' and 'std' go together"),
        ({"name": "cifar100", "mean": [1, 2, 3], "std": [60]}, "as many numbers in both"),
        ({"name": "cifar100", "mean": [1, 2], "std": [60, 60]}, "it needs 1 or 3 numbers from 0 to 255"),
        ({"name": "cifar100", "mean": [0.5] * 3, "std": [0.25] * 3}, "multiply shares of 1 by 255"),
    ],
)
def test_invalid_options_are_refused(fields, said):
    with pytest.raises(RecipeError) as caught:
        Data(**fields)
    assert said in str(caught.value)


def test_given_mean_and_deviation_are_used_in_the_order_of_red_green_blue(photographs):
    root, clean = photographs
    mean, std = (129.38, 124.11, 112.48), (68.21, 65.43, 70.46)
    data = open_data(Data("cifar10", root=root, mean=list(mean), std=list(std), augment=Augment(crop=4)))
    ((images, _),) = data.test_batches(batch=20)
    expected = (clean[:10].double() - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert (images - expected).abs().max() < 1e-5
    (batch,) = data.train_batches("all", batch=20, steps=1)
    outside = torch.tensor([bool((image[:, 0] == 0).all() or (image[:, -1] == 0).all()) for image in batch.images])
    assert outside.any()  # what a crop brings in is 0 after normalisation
    with pytest.raises(DataError, match=r"have 3 number\(s\), but images of 'cifar10' have 1 channel"):
        open_data(Data("cifar10", root=root, channels=1, mean=list(mean), std=list(std)))
