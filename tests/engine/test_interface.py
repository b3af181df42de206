"""Networks with preprocessing of their own, in one run: each sees its own view of the same augmented images."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

import flowstill as fs
from flowstill.data import Augment, Data, open_data
from flowstill.engine.interface import Interface, data_preprocessing
from flowstill.errors import NetworkError
from flowstill.nets import save_weights
from flowstill.reports.snippet import IMPORTS, snippet
from support.compared_runs import PLAIN
from support.trained_digits import digits, flat, trained

TINY = {"scale": 5e-5, **PLAIN}
DATA = fs.Preprocessing([100.0, 90.0, 80.0], [50.0, 40.0, 30.0], [8, 8], "bilinear", 1.0, "rgb")


def interface(**own):
    return Interface(fs.Preprocessing(**own).or_else(DATA), DATA)


def normalised(pixels, mean, std):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()


def test_the_same_preprocessing_changes_nothing(pixels):
    images = normalised(pixels, DATA.mean, DATA.std)
    assert interface().images(images) is images
    assert interface().images(images, testing=True) is images


def test_another_scale_and_order(pixels):
    images = normalised(pixels, DATA.mean, DATA.std)
    mean, std = [1.0, 2.0, 3.0], [255.0, 200.0, 100.0]
    expected = normalised(pixels, mean, std)
    torch.testing.assert_close(interface(mean=mean, std=std).images(images), expected, rtol=1e-5, atol=1e-5)
    swapped = interface(mean=mean, std=std, order="bgr").images(images)
    torch.testing.assert_close(swapped, expected.flip(1), rtol=1e-5, atol=1e-5)


def test_another_size_and_crop(pixels):
    images = normalised(pixels, DATA.mean, DATA.std)
    assert interface(size=16).images(images).shape == (4, 3, 16, 16)
    assert interface(size=16).shape == (3, 16, 16)
    shown = interface(size=6, crop=0.75).images(images, testing=True)
    assert torch.equal(shown, images[..., 1:7, 1:7])
    assert interface(size=8, crop=0.75).images(images).equal(images)  # training sees all
    nearest = interface(size=4, interpolation="nearest").images(images)
    assert torch.equal(nearest, images[..., 1::2, 1::2])


def test_a_teacher_with_another_scale_teaches_the_same(tmp_path):
    """A teacher trained on values from 0 to 1, told so, and the same function of the data's images."""
    teacher = trained(0.0, 255.0)
    data = digits()

    class Rescaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = teacher

        def forward(self, x):
            return self.inner(x * data.std[0] + data.mean[0])

    learned = []
    for number, (given, said) in enumerate(
        [(Rescaled(), ()), (teacher, "teacher.network.preprocessing={mean: [0], std: [255]}")]
    ):
        student = flat()
        run = fs.distill(given, student, "digits", out=tmp_path / str(number), set=said, scale=5e-4, **PLAIN)
        assert run.summary.jobs["teacher"].accuracy > 90
        learned.append(student[1].weight.detach())
    torch.testing.assert_close(*learned, rtol=1e-4, atol=1e-5)


def test_a_run_records_preprocessing(tmp_path):
    run = fs.distill(trained(), flat(), "digits", out=tmp_path / "run", **TINY)
    data = digits()
    mean, std = 255 * data.mean[0], 255 * data.std[0]
    facts = run.recipe["run"]["preprocessing"]["student"]
    assert facts["mean"] == pytest.approx([mean])
    assert (facts["size"], facts["order"], facts["interpolation"], facts["crop"]) == ([8, 8], "rgb", "bilinear", 1.0)
    with safe_open(tmp_path / "run" / "student.safetensors", "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["preprocessing"])["std"] == pytest.approx([std])
    assert json.loads(metadata["classes"]) == list(data.classes)
    assert float(metadata["accuracy"]) == pytest.approx(run.summary.jobs["student"].accuracy, abs=0.01)
    config = json.loads((tmp_path / "run" / "preprocessor_config.json").read_text())
    assert config["image_mean"] == pytest.approx(data.mean)
    assert config["image_std"] == pytest.approx(data.std)
    assert config["class_names"] == list(data.classes)


def test_a_teachers_file_carries_its_preprocessing_to_the_next_run(tmp_path):
    """Also where the next run's own statistics are others, as only some classes are kept."""
    first = fs.train(
        fs.Recipe("t", Data("digits", mean=[10.0], std=[70.0]), {"teacher": fs.Job("resnet8", fs.alone(30, 0.1))}),
        tmp_path / "first",
        **PLAIN,
    )
    file = first.path / "teacher.safetensors"
    run = fs.distill("resnet8", "resnet8", "digits", teacher_weights=file, out=tmp_path / "run", **TINY)
    facts = run.recipe["run"]["preprocessing"]
    assert facts["teacher"]["mean"] == [10.0]
    assert facts["student"]["mean"] == pytest.approx([255 * digits().mean[0]])
    assert run.summary.jobs["teacher"].accuracy == pytest.approx(first.summary.jobs["teacher"].accuracy, abs=0.21)
    again = fs.evaluate(run)
    assert again["teacher"]["accuracy"] == run.summary.jobs["teacher"].accuracy


def test_a_student_that_sees_larger_images_than_its_teacher(tmp_path):
    said = "student.network.preprocessing.size=16"
    run = fs.distill(
        fs.create("resnet8", 10, 1),
        fs.create("resnet8", 10, 1),
        "digits",
        "fsp",
        set=said,
        out=tmp_path / "run",
        **TINY,
    )
    assert run.recipe["run"]["preprocessing"]["student"]["size"] == [16, 16]
    assert run.summary.jobs["student"].macs == 4 * run.summary.jobs["teacher"].macs - 3 * 640


def test_a_resumed_run_keeps_its_interfaces(tmp_path):
    class Stop(Exception):
        pass

    def stop(job, stage, step):
        if step == 2:
            raise Stop

    teacher = nn.Sequential(trained(0.0, 255.0), nn.Softmax(1))
    said = "teacher.network.preprocessing={mean: [0], std: [255]}"
    options = {"set": said, "scale": 1e-4, **PLAIN}
    whole = flat()
    fs.distill(teacher, whole, "digits", out=tmp_path / "whole", **options)
    broken = flat()
    with pytest.raises(Stop):
        fs.distill(teacher, broken, "digits", out=tmp_path / "run", on_step=stop, **options)
    run = fs.distill(teacher, broken, "digits", out=tmp_path / "run", resume=True, **options)
    assert run.recipe["run"]["preprocessing"]["teacher"]["output"] == "probabilities"
    assert torch.equal(broken[1].weight, whole[1].weight)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))


def test_statistics_for_another_number_of_channels_are_refused(tmp_path):
    said = "teacher.network.preprocessing={mean: [1, 2, 3], std: [1, 2, 3]}"
    with pytest.raises(NetworkError, match=r"have 3 number.*1 channel"):
        fs.distill(trained(), flat(), "digits", set=said, out=tmp_path / "run", **TINY)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two classes, dark and light, of pictures that are no squares."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 4)):
        for label, level in (("dark", 60), ("light", 190)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = random.normal(level, 30, (5, 6, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return root


def test_the_loaded_student_sees_what_it_was_tested_with(tmp_path, photographs):
    spec = Data(str(photographs), size=16, test_crop=0.8, batch=8, augment=Augment(flip=True))
    run = fs.distill(small(), small(), spec, out=tmp_path / "run", **TINY)
    student, preprocess = fs.load_student(run)
    files = sorted((photographs / "test").glob("*/*.png"))
    images, labels = open_data(spec).test_sample(100)
    torch.testing.assert_close(preprocess(files), images, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        right = (student(preprocess(files)).argmax(1) == labels).float().mean()
    assert 100 * float(right) == pytest.approx(run.summary.jobs["student"].accuracy, abs=1e-3)
    assert data_preprocessing(open_data(spec)).crop == 0.8


def test_augmentation_does_not_change_the_test_images(photographs):
    plain, augmented = (
        open_data(Data(str(photographs), size=16, augment=augment, workers=0)).test_sample(9)[0]
        for augment in (Augment(), Augment(resized_crop=True, flip=True))
    )
    assert plain.shape == augmented.shape
    assert (plain - augmented).abs().max() < 1e-4


def test_held_out_images_are_tested_on_their_centre_crop(photographs):
    spec = Data(str(photographs), size=16, hold_out=4, test_crop=0.5, workers=0)
    data, whole = open_data(spec), open_data(Data(str(photographs), size=16, hold_out=4, workers=0))
    (images, _), (full, _) = data.test_sample(4), whole.test_sample(4)
    assert not torch.allclose(images, full, atol=0.1)
    assert data.mean == whole.mean  # training still sees all of them
    ours, theirs = (next(d.train_batches("all", batch=4, steps=1)).images for d in (data, whole))
    assert torch.equal(ours, theirs)


def test_the_reports_snippet_runs(tmp_path, photographs, monkeypatch):
    spec = Data(str(photographs), size=16, batch=8)
    run = fs.distill(small(), small(), spec, out=tmp_path / "run", **TINY)
    assert len(snippet(run).splitlines()) == 3
    monkeypatch.chdir(run.path)
    photo = sorted((photographs / "test").glob("*/*.png"))[0]
    names = {"network": small()}
    exec(f"{IMPORTS}\n{snippet(run).replace('photo.jpg', str(photo))}", names)
    student, preprocess = fs.load_student(run)
    torch.testing.assert_close(names["logits"], student(preprocess(photo)), rtol=0.05, atol=0.05)
    html = (run.path / "report.html").read_text()
    assert "Use the student" in html
    assert "v2.Normalize" in html


def test_weights_that_record_nothing_take_the_librarys_scale(tmp_path):
    """A file for a timm network: its mean and deviation are timm's, its size the data's."""
    network = fs.create("timm:test_resnet", 2)
    save_weights(network, tmp_path / "t.safetensors")
    spec = Data("synthetic:cifar10", batch=4, classes=("cat", "dog"), mean=[90.0] * 3, std=[60.0] * 3)
    run = fs.distill(
        "timm:test_resnet", "resnet8", spec, teacher_weights=tmp_path / "t.safetensors", out=tmp_path / "run", **TINY
    )
    facts = run.recipe["run"]["preprocessing"]
    assert facts["teacher"]["mean"] == pytest.approx([255 * v for v in network.pretrained_cfg["mean"]])
    assert facts["teacher"]["size"] == [32, 32]
    assert facts["student"]["mean"] == pytest.approx([90.0] * 3)


def test_a_network_of_a_run_carries_its_preprocessing_to_the_next(tmp_path):
    """As an object, read back from the run or made from its file; timm's own scale is not taken for it."""
    spec = Data("synthetic:cifar10", batch=4, classes=("cat", "dog"), mean=[90.0] * 3, std=[60.0] * 3)
    job = fs.Job("timm:test_resnet", fs.alone(1, 0.1))
    first = fs.train(fs.Recipe("t", spec, {"teacher": job}), tmp_path / "first", **PLAIN)
    student = small()
    for number, teacher in enumerate(
        [
            first.network("teacher"),
            fs.create("timm:test_resnet", 2, weights=first.path / "teacher.safetensors"),
            copy.deepcopy(first.network("teacher")),
        ]
    ):
        other = Data("synthetic:cifar10", batch=4, classes=("cat", "dog"))
        run = fs.distill(teacher, student, other, out=tmp_path / str(number), **TINY)
        assert run.recipe["run"]["preprocessing"]["teacher"]["mean"] == [90.0] * 3
    assert student.preprocessing.mean == pytest.approx((127.5,) * 3)
