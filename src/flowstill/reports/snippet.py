"""Code that uses a run's student without flowstill."""

from __future__ import annotations

from flowstill.errors import RunError
from flowstill.nets.preprocessing import Preprocessing
from flowstill.runs import Run
from flowstill.runs.folder import student_of

IMPORTS = "import torch, PIL.Image, safetensors.torch\nfrom torchvision.transforms import v2"


def snippet(run: Run) -> str | None:
    """Three lines of plain PyTorch that load the student and classify a photograph; None if the run does not say how.

    They need the imports in ``IMPORTS`` and the student's ``network``.
    """
    if not run.jobs:
        return None
    job = student_of(run.jobs)
    try:
        preprocessing = run.preprocessing(job)
    except RunError:
        return None
    mode = "L" if len(preprocessing.mean or ()) == 1 else "RGB"
    return "\n".join(
        [
            f'network.load_state_dict(safetensors.torch.load_file("{job}.safetensors"))',
            f"preprocess = {transforms(preprocessing)}",
            f'logits = network.eval()(preprocess(PIL.Image.open("photo.jpg").convert("{mode}"))[None])',
        ]
    )


def transforms(preprocessing: Preprocessing) -> str:
    """The preprocessing as torchvision's transforms."""
    assert preprocessing.mean is not None
    assert preprocessing.std is not None
    assert preprocessing.size is not None
    resized = round(min(preprocessing.size) / (preprocessing.crop or 1))
    interpolation = (preprocessing.interpolation or "bilinear").upper()
    mean, std = ([round(value / 255, 6) for value in values] for values in (preprocessing.mean, preprocessing.std))
    steps = [
        f"v2.Resize({resized}, v2.InterpolationMode.{interpolation})",
        f"v2.CenterCrop({list(preprocessing.size)})",
        "v2.ToImage()",
        "v2.ToDtype(torch.float32, scale=True)",
        f"v2.Normalize({mean}, {std})",
    ]
    if preprocessing.order == "bgr":
        steps.append("lambda image: image.flip(0)")
    return f"v2.Compose([{', '.join(steps)}])"
