"""How images become a network's input, and how that is saved and loaded."""

import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms import v2

import flowstill as fs
from flowstill.errors import NetworkError, RecipeError
from flowstill.nets import save_weights
from flowstill.nets.published import library_preprocessing, own_preprocessing, preprocessing_in

WHOLE = fs.Preprocessing([120.0, 110.0, 100.0], [60.0, 50.0, 40.0], [24, 32], "bicubic", 0.8, "rgb")


@pytest.fixture
def photograph(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((91, 64), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_pixels_by_hand():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    found = fs.Preprocessing([1.0, 2.0, 3.0], [2.0, 4.0, 8.0], 2)(pixels)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor(
        [2.0, 4, 8]
    ).view(3, 1, 1)
    torch.testing.assert_close(found, expected[None])
    swapped = fs.Preprocessing([1.0, 2.0, 3.0], [2.0, 4.0, 8.0], 2, order="bgr")(pixels)
    assert torch.equal(swapped, found.flip(1))


@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_preprocessing_matches_torchvision(photograph, crop, interpolation):
    """On a square, where torchvision, which resizes and then crops, rounds no side; up to a grey level, and the rim."""
    photograph = Image.open(photograph).crop((0, 0, 64, 64))
    own = fs.Preprocessing([120.0, 110.0, 100.0], [60.0, 50.0, 40.0], 28, interpolation, crop)(photograph)
    theirs = v2.Compose(
        [
            v2.Resize(round(28 / crop), v2.InterpolationMode(interpolation)),
            v2.CenterCrop(28),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([120 / 255, 110 / 255, 100 / 255], [60 / 255, 50 / 255, 40 / 255]),
        ]
    )(photograph)
    assert (own[0] - theirs)[:, 2:-2, 2:-2].abs().max() < 1.6 / 40


def test_paths_pictures_arrays_and_lists_are_the_same(photograph):
    picture = Image.open(photograph)
    one = WHOLE(photograph)
    assert one.shape == (1, 3, 24, 32)
    for other in (str(photograph), picture, np.array(picture), picture.convert("RGBA")):
        assert torch.equal(WHOLE(other), one)
    assert torch.equal(WHOLE([photograph, picture]), torch.cat([one, one]))
    grey = fs.Preprocessing([100.0], [50.0], 16)
    assert grey(photograph).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("size", [(32, 32), (224, 224)])
def test_hugging_faces_form_reads_back(order, size):
    own = fs.Preprocessing([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], size, "bicubic", size[0] / 256, order)
    config = json.loads(json.dumps(own.to_hugging_face()))
    again = fs.Preprocessing.from_hugging_face(config)
    assert (again.size, again.interpolation, again.order) == (own.size, own.interpolation, own.order)
    assert again.mean == pytest.approx(own.mean)
    assert again.std == pytest.approx(own.std)
    assert again.crop == pytest.approx(own.crop, abs=0.01)
    assert config["image_mean"][0] == pytest.approx(0.485 if order == "rgb" else 0.406)


def test_configurations_from_the_hub():
    vit = {"do_resize": True, "size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    found = fs.Preprocessing.from_hugging_face(vit)
    assert (found.mean, found.std, found.size, found.crop) == ((127.5,) * 3, (127.5,) * 3, (224, 224), None)
    convnext = {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_mean": [0.485, 0.456, 0.406]}
    found = fs.Preprocessing.from_hugging_face({**convnext, "image_std": [0.229, 0.224, 0.225], "resample": 3})
    assert (found.size, found.crop, found.interpolation) == ((224, 224), 0.875, "bicubic")
    unscaled = {"do_rescale": False, "image_mean": [127.0] * 3, "image_std": [128.0] * 3, "size": 224}
    assert fs.Preprocessing.from_hugging_face(unscaled).mean == (127.0,) * 3
    with pytest.raises(NetworkError, match=r"preprocessor_config\.json"):
        fs.Preprocessing.from_hugging_face({"image_mean": "grey", "image_std": 3})


def test_preprocessing_of_library_networks():
    config = timm.get_pretrained_cfg("resnet18")
    found = library_preprocessing("timm:resnet18")
    assert found.mean == pytest.approx([255 * value for value in config.mean])
    assert (found.size, found.crop) == (config.input_size[1:], config.crop_pct)
    transforms = models.get_model_weights("swin_t").DEFAULT.transforms()
    found = library_preprocessing("torchvision:swin_t")
    assert found.std == pytest.approx([255 * value for value in transforms.std])
    assert found.size == (224, 224)
    assert found.interpolation == transforms.interpolation.value
    assert library_preprocessing("resnet8") is library_preprocessing("timm:nothing_of_the_kind") is None
    inception = timm.create_model("test_resnet")
    assert own_preprocessing(inception).mean == pytest.approx([255 * v for v in inception.pretrained_cfg["mean"]])
    assert own_preprocessing(models.squeezenet1_1(num_classes=2)).mean == (123.675, 116.28, 103.53)
    assert own_preprocessing(torch.nn.Linear(1, 1)) is None


def test_a_file_records_it_in_its_metadata_or_beside_it(tmp_path):
    network = torch.nn.Linear(2, 2)
    save_weights(
        network, tmp_path / "own.safetensors", {"preprocessing": json.dumps({"mean": [1, 2, 3], "std": [4, 5, 6]})}
    )
    assert preprocessing_in(tmp_path / "own.safetensors") == fs.Preprocessing([1, 2, 3], [4, 5, 6])
    (tmp_path / "hub").mkdir()
    save_weights(network, tmp_path / "hub" / "model.safetensors")
    assert preprocessing_in(tmp_path / "hub" / "model.safetensors") is None
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(WHOLE.to_hugging_face()))
    assert preprocessing_in(tmp_path / "hub" / "model.safetensors").mean == pytest.approx(WHOLE.mean)
    save_weights(network, tmp_path / "bad.safetensors", {"preprocessing": "{"})
    with pytest.raises(NetworkError, match=r"bad\.safetensors"):
        preprocessing_in(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mean": [1, 2, 3]}, "go together"),
        ({"mean": [1, 2], "std": [1, 2]}, "1 or 3 numbers"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, r"mean: \[123.67, 116.28, 103.53\]"),
        ({"mean": [1.0], "std": [0.0]}, "more than 0"),
        ({"size": 0}, "at least 1"),
        ({"crop": 1.5}, "at most 1"),
        ({"order": "brg"}, "bgr"),
    ],
)
def test_invalid_preprocessing_is_refused(values, says):
    with pytest.raises(RecipeError, match=says):
        fs.Preprocessing(**values)


def test_files_with_the_same_texts_have_the_same_bytes(tmp_path):
    network, texts = (
        torch.nn.Linear(3, 2),
        {name: name * 3 for name in ["zebra", "ant", "bee", "crow", "dog", "eel", "fox"]},
    )
    save_weights(network, tmp_path / "first.safetensors", texts)
    for number in range(5):
        save_weights(network, tmp_path / "again.safetensors", dict(reversed(texts.items())))
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes(), number
    read = safetensors.torch.load_file(tmp_path / "first.safetensors")
    assert torch.equal(read["weight"], network.weight)
    with safetensors.safe_open(tmp_path / "first.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **texts}
