"""What a stage's stored knowledge comes to: which numbers are kept of each image, and how many bytes that takes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowstill.data.spec import Data
from flowstill.errors import RecipeError
from flowstill.features.taps import Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.recipes.recipe import Job
from flowstill.transfer.knowledge import Knowledge, Loss, Target
from flowstill.transfer.stages import Stage, Stored

SIZES = {"fp32": 4, "fp16": 2}  # bytes of a number
CHECKSUM = 4  # bytes beside the numbers of each image and view
BLOCK = 4096  # bytes that a file system gives at the least
FEW_VIEWS = 4  # offered where an augmentation shows too many

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class TargetLayout:
    """How a target (a tensor or a tuple of tensors, images first) lies in a row of numbers.

    shapes, dtypes: of its tensors, without the images' dimension. single: one tensor, not a tuple.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    single: bool

    @classmethod
    def of(cls, target: Target) -> TargetLayout:
        """The layout of ``target``. Raises: RecipeError if it is not made of float tensors."""
        tensors = (target,) if isinstance(target, Tensor) else target
        if not isinstance(tensors, tuple) or not all(
            isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim for tensor in tensors
        ):
            raise RecipeError(
                "only a float tensor, or a tuple of them, with the images in the first dimension can be "
                f"stored, not {type(target).__name__}"
            )
        return cls(
            tuple(tuple(tensor.shape[1:]) for tensor in tensors),
            tuple(t.dtype for t in tensors),
            isinstance(target, Tensor),
        )

    @property
    def numbers(self) -> int:
        """How many there are of one image."""
        return sum(map(math.prod, self.shapes))

    def flat(self, target: Target) -> Tensor:
        """The numbers of a target, (B, numbers), float32 on the CPU."""
        tensors = (target,) if self.single else target
        return torch.cat([tensor.detach().float().cpu().flatten(1) for tensor in tensors], 1)

    def target(self, numbers: Tensor) -> Target:
        """The target made of (B, numbers), on their device.

        >>> layout = TargetLayout(((2, 2), (3,)), (torch.float32, torch.float32), single=False)
        >>> [tuple(part.shape) for part in layout.target(torch.zeros(5, 7))]
        [(5, 2, 2), (5, 3)]
        """
        parts = torch.split(numbers, [math.prod(shape) for shape in self.shapes], dim=1)
        tensors = tuple(
            part.reshape(-1, *shape).to(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        )
        return tensors[0] if self.single else tensors


@dataclass(frozen=True)
class StoredFile:
    """What one term's knowledge takes.

    key: equal in all stages and jobs that share the file. numbers: of an image. dtype: ``fp32`` or ``fp16``.
    shown: the most images in a view, each counted as often as it is shown, that the stages come to.
    cells: how many images in how many views there are; None where the number of training images is not known.
    """

    key: str
    numbers: int
    dtype: str
    shown: int
    cells: int | None

    @property
    def bytes(self) -> int:
        """The most that the file can take, whichever images come."""
        cell = self.numbers * SIZES[self.dtype] + CHECKSUM
        scattered = self.shown * (cell + BLOCK)
        return scattered if self.cells is None else min(scattered, self.cells * cell)


def most_bytes(files: Iterable[StoredFile]) -> int:
    """The most that these take together, those that are shared once."""
    together: dict[str, StoredFile] = {}
    for file in files:
        shown = together[file.key].shown if file.key in together else 0
        together[file.key] = replace(file, shown=shown + file.shown)
    return sum(file.bytes for file in together.values())


def readable(size: int) -> str:
    """Bytes for people.

    >>> readable(45_619_200_000), readable(5_000)
    ('45.6 GB', '5 kB')
    """
    unit, name = next((unit for unit in ((10**9, "GB"), (10**6, "MB")) if size >= unit[0]), (10**3, "kB"))
    return f"{size / unit:.3g} {name}"


def stored_files(
    job: Job,
    stage: Stage,
    terms: Sequence[tuple[Knowledge, Loss]],
    data: Data,
    teacher: nn.Module | None,
    shape: Shape,
    images: int | None,
) -> tuple[StoredFile, ...]:
    """One file for each knowledge that a stage of the job takes from its teacher; none if it is not stored.

    terms: the stage's. teacher: the network. shape: (C, H, W), the images'. images: how many rows the training set has,
    None where that is not known.

    Raises: RecipeError if a loss cannot be stored, or the augmentation shows more views than may be kept.
    """
    if not isinstance(stage.knowledge, Stored) or teacher is None or job.weights:
        return ()
    wanted = {repr(knowledge): (knowledge, loss) for knowledge, loss in terms if reads_teacher(loss)}
    for knowledge, loss in wanted.values():
        if not loss.storable:
            raise RecipeError(
                f"stage {stage.name!r}: what {knowledge.name!r} takes from the teacher depends on more than "
                "the image, so it cannot be stored. Use 'knowledge: live'."
            )
    views = data.augment.view_count
    cells = None if images is None or views is None else images * views
    shown = stage.steps * (data.batch + data.unlabelled)
    labels = job.labels or data.labels
    if labels and views and _sees_labelled_only(stage, data):
        shown = min(shown, labels * views)
    dtype = stage.knowledge.dtype
    files = []
    for written, (knowledge, loss) in wanted.items():
        key = repr((job.teacher, written, type(loss).__name__, loss.teacher_taps, dtype))
        files.append(StoredFile(key, _numbers(stage, knowledge, loss, teacher, shape), dtype, shown, cells))
    _check_views(stage, stage.knowledge, views, files)
    return tuple(files)


def _sees_labelled_only(stage: Stage, data: Data) -> bool:
    """Whether the teacher is asked of labelled images alone: those of the batches that have a task."""
    asked = [any(term.knowledge.needs_teacher for update in batch for term in update.terms) for batch in stage.cycle]
    return all(
        task and not (transfer and data.unlabelled)
        for teaches, (task, transfer) in zip(asked, stage.rhythm, strict=True)
        if teaches
    )


def reads_teacher(loss: Loss) -> bool:
    """Whether a loss's target is made of what the teacher gives."""
    return bool(loss.teacher_taps) or loss.teacher_logits


def _check_views(stage: Stage, stored: Stored, views: int | None, files: list[StoredFile]) -> None:
    """Raises: RecipeError if the augmentation shows more views than may be kept."""
    if not files or (views is not None and views <= stored.views):
        return
    few, ways = max(FEW_VIEWS, stored.views), []
    if views is not None:
        ways.append(f"say 'views: {views}' (at most {readable(most_bytes(files))})")
    if views is None or views > few:
        ways.append(f"draw from a few fixed views ('data.augment.views: {few}' with 'views: {few}' here)")
    advice = f"{', '.join(ways)}, or use 'knowledge: live'."
    shown = f"{views} views of an image" if views else "no image twice the same ('rotate' and 'resized_crop' do that)"
    raise RecipeError(
        f"stage {stage.name!r}: the augmentation shows {shown}, and 'views: {stored.views}' of its stored "
        f"knowledge allows {stored.views}. {advice[0].upper()}{advice[1:]}"
    )


def _numbers(stage: Stage, knowledge: Knowledge, loss: Loss, teacher: nn.Module, shape: Shape) -> int:
    """How many numbers are kept of an image, found by reading one."""
    try:
        return TargetLayout.of(_target(loss, teacher, shape)).numbers
    except RecipeError as error:
        raise RecipeError(f"stage {stage.name!r}, {knowledge.name!r}: {error}. Use 'knowledge: live'.") from None


def _target(loss: Loss, teacher: nn.Module, shape: Shape) -> Target:
    """The loss's target for one black image; the teacher is left as it is."""
    images = example_images(teacher, shape)
    tapped = Tapped(teacher, loss.teacher_taps)
    with undisturbed(teacher, images.device), torch.no_grad():
        reading = read_once(tapped, images)
        try:
            return loss.target(reading)
        except RuntimeError:  # not everything can be worked out without numbers
            if not images.is_meta:
                raise
    return _target(loss, _zeroed(teacher), shape)


def _zeroed(network: nn.Module) -> nn.Module:
    """A copy with memory behind its weights, which are zero."""
    copied = copy.deepcopy(network).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    return copied
