"""The size of a stage's stored knowledge: how many numbers and bytes are kept for each image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowstill.data.spec import Data
from flowstill.errors import RecipeError
from flowstill.features.copying import copied
from flowstill.features.taps import Tapped
from flowstill.features.tracing import example_images, read_once, undisturbed
from flowstill.files import readable_size
from flowstill.recipes.recipe import Job
from flowstill.transfer.knowledge import Knowledge, Loss, Target
from flowstill.transfer.stages import Stage, Stored

SIZES = {"fp32": 4, "fp16": 2}  # bytes per number
CHECKSUM = 4  # bytes, for each view of each image
BLOCK = 4096  # bytes: the smallest block that a file system allocates
FEW_VIEWS = 4  # suggested when the augmentation has too many views

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class TargetLayout:
    """How a target, a tensor or a tuple of tensors with the images first, is flattened into one row of numbers per image.

    Attributes:
        shapes: shape of each tensor without the dimension of the images.
        dtypes: dtype of each tensor.
        single: whether the target is one tensor, not a tuple.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    single: bool

    @classmethod
    def of(cls, target: Target) -> TargetLayout:
        """The layout of ``target``.

        Raises:
            RecipeError: it is neither a float tensor nor a tuple of them.
        """
        tensors = (target,) if isinstance(target, Tensor) else target
        if not isinstance(tensors, tuple) or not all(
            isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim for tensor in tensors
        ):
            raise RecipeError(
                "expected a float tensor to store, or a tuple of them, with the images in the first dimension, "
                f"got {type(target).__name__}"
            )
        return cls(
            tuple(tuple(tensor.shape[1:]) for tensor in tensors),
            tuple(t.dtype for t in tensors),
            isinstance(target, Tensor),
        )

    @property
    def numbers(self) -> int:
        """Count of numbers per image."""
        return sum(map(math.prod, self.shapes))

    def flat(self, target: Target) -> Tensor:
        """Flatten a target to (B, numbers), float32 on the CPU."""
        tensors = (target,) if self.single else target
        return torch.cat([tensor.detach().float().cpu().flatten(1) for tensor in tensors], 1)

    def target(self, numbers: Tensor) -> Target:
        """Restore the target from (B, numbers), on the same device.

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
    """The file that keeps one term's knowledge.

    Attributes:
        key: the same in all stages and jobs that share the file.
        numbers: count of numbers per image and view.
        dtype: ``fp32`` or ``fp16``.
        shown: upper bound on the views shown in training, repeats included.
        cells: training images times views; None if the number of images is unknown.
    """

    key: str
    numbers: int
    dtype: str
    shown: int
    cells: int | None

    @property
    def bytes(self) -> int:
        """Upper bound on the file's size, whichever images are drawn."""
        cell = self.numbers * SIZES[self.dtype] + CHECKSUM
        scattered = self.shown * (cell + BLOCK)
        return scattered if self.cells is None else min(scattered, self.cells * cell)


def most_bytes(files: Iterable[StoredFile]) -> int:
    """Upper bound on the size of all files together; a shared file counts once."""
    together: dict[str, StoredFile] = {}
    for file in files:
        shown = together[file.key].shown if file.key in together else 0
        together[file.key] = replace(file, shown=shown + file.shown)
    return sum(file.bytes for file in together.values())


def stored_files(
    job: Job,
    stage: Stage,
    terms: Sequence[tuple[Knowledge, Loss]],
    data: Data,
    teacher: nn.Module | None,
    shape: Shape,
    images: int | None,
) -> tuple[StoredFile, ...]:
    """The files that a stage keeps of its teacher's knowledge.

    Args:
        job: the job.
        stage: one of its stages.
        terms: knowledge and loss of each of the stage's terms.
        data: the images.
        teacher: the teacher's network; None without a teacher.
        shape: (C, H, W) of the images.
        images: number of training images; None if unknown.

    Returns:
        One file for each knowledge read from the teacher; none if the stage reads the teacher live.

    Raises:
        RecipeError: a loss cannot be stored, or the augmentation has more views than may be kept.
    """
    if not isinstance(stage.knowledge, Stored) or teacher is None or job.weights:
        return ()
    from_teacher = {repr(knowledge): (knowledge, loss) for knowledge, loss in terms if reads_teacher(loss)}
    for knowledge, loss in from_teacher.values():
        if not loss.storable:
            raise RecipeError(
                f"stage {stage.name!r}: {knowledge.name!r} cannot be stored, since its target depends on more than the "
                "image. Use 'knowledge: live'."
            )
    views = data.augment.view_count
    cells = None if images is None or views is None else images * views
    shown = stage.steps * (data.batch + data.unlabelled)
    labels = job.labels or data.labels
    if labels and views and _sees_labelled_only(stage, data):
        shown = min(shown, labels * views)
    dtype = stage.knowledge.dtype
    files = []
    for written, (knowledge, loss) in from_teacher.items():
        key = repr((job.teacher, written, type(loss).__name__, loss.teacher_taps, dtype))
        files.append(StoredFile(key, _numbers(stage, knowledge, loss, teacher, shape), dtype, shown, cells))
    _check_views(stage, stage.knowledge, views, files)
    return tuple(files)


def _sees_labelled_only(stage: Stage, data: Data) -> bool:
    """Whether the teacher reads labelled images only: every update that needs it has a task and no unlabelled images."""
    reads = [any(term.knowledge.needs_teacher for update in batch for term in update.terms) for batch in stage.cycle]
    return all(
        task and not (transfer and data.unlabelled)
        for needs_teacher, (task, transfer) in zip(reads, stage.rhythm, strict=True)
        if needs_teacher
    )


def reads_teacher(loss: Loss) -> bool:
    """Whether a loss computes its target from the teacher's maps or logits."""
    return bool(loss.teacher_taps) or loss.teacher_logits


def _check_views(stage: Stage, stored: Stored, views: int | None, files: list[StoredFile]) -> None:
    """Check the number of views.

    Raises:
        RecipeError: the augmentation has more views than may be kept.
    """
    if not files or (views is not None and views <= stored.views):
        return
    few, ways = max(FEW_VIEWS, stored.views), []
    if views is not None:
        ways.append(f"say 'views: {views}' (at most {readable_size(most_bytes(files))})")
    if views is None or views > few:
        ways.append(f"draw from a few fixed views ('data.augment.views: {few}' with 'views: {few}' here)")
    advice = f"{', '.join(ways)}, or use 'knowledge: live'."
    shown = f"{views} views of an image" if views else "no image twice the same ('rotate' and 'resized_crop' do that)"
    raise RecipeError(
        f"stage {stage.name!r}: the augmentation shows {shown}, and 'views: {stored.views}' of its stored "
        f"knowledge allows {stored.views}. {advice[0].upper()}{advice[1:]}"
    )


def _numbers(stage: Stage, knowledge: Knowledge, loss: Loss, teacher: nn.Module, shape: Shape) -> int:
    """Count of numbers kept per image, found by reading one."""
    try:
        return TargetLayout.of(_target(loss, teacher, shape)).numbers
    except RecipeError as error:
        raise RecipeError(f"stage {stage.name!r}, {knowledge.name!r}: {error}. Use 'knowledge: live'.") from None


def _target(loss: Loss, teacher: nn.Module, shape: Shape) -> Target:
    """The loss's target for one black image; the teacher's state does not change."""
    images = example_images(teacher, shape)
    tapped = Tapped(teacher, loss.teacher_taps)
    with undisturbed(teacher, images.device), torch.no_grad():
        reading = read_once(tapped, images)
        try:
            return loss.target(reading)
        except RuntimeError:  # some targets need values, which meta tensors lack
            if not images.is_meta:
                raise
    return _target(loss, _zeroed(teacher), shape)


def _zeroed(network: nn.Module) -> nn.Module:
    """A copy on the CPU with all weights and buffers zero."""
    zeroed = copied(network).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*zeroed.parameters(), *zeroed.buffers()):
            tensor.zero_()
    return zeroed
