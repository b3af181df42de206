"""A teacher's targets for each image and view, computed once and kept in files in the run folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning_fabric import Fabric

from flowstill.data.batch import Batch
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import Teacher
from flowstill.errors import RunError, option
from flowstill.files import readable_size
from flowstill.nets.beside import metadata, split
from flowstill.recipes.storage import StoredFile, TargetLayout, most_bytes, reads_teacher
from flowstill.transfer.knowledge import Knowledge, Loss, Target
from flowstill.transfer.stages import Stored

if TYPE_CHECKING:
    from flowstill.data import ImageData
    from flowstill.engine.student import Student

FOLDER = "knowledge"  # in the run's folder
NUMBERS = {"fp32": "<f4", "fp16": "<f2"}
Cells = np.ndarray[tuple[int], np.dtype[np.int64]]  # index * views + view


class Store:
    """The targets of one loss: a row of numbers for each cell (one image in one view), filled as images come.

    A file of checksums beside it says which cells are filled. Both files are sparse: cells never written take no room.
    Cells are read through a memory map and written through the file, so that a full disk raises an error.

    Args:
        path: of the numbers.
        layout: how a target lies in a row.
        dtype: ``fp32`` or ``fp16``.
        cells: how many there are.
        checks: whether to verify the checksums of cells from an earlier process; damaged cells count as missing.
    """

    def __init__(self, path: Path, layout: TargetLayout, dtype: str, cells: int, *, checks: bool = True) -> None:
        self.layout, self.path = layout, path
        kind, sums = np.dtype(NUMBERS[dtype]), path.with_suffix(".sums")
        for file, size in ((path, cells * layout.numbers * kind.itemsize), (sums, 4 * cells)):
            with file.open("ab") as made:
                made.truncate(size)
        self._numbers = np.memmap(path, kind, "r", shape=(cells, layout.numbers))
        self._sums = np.memmap(sums, "<u4", "r", shape=(cells,))
        self._files = path.open("r+b"), sums.open("r+b")
        if checks:
            filled = np.flatnonzero(self._sums)
            damaged = filled[[_checksum(self._numbers[cell]) != self._sums[cell] for cell in filled]]
            self._put(1, damaged, np.zeros(len(damaged), self._sums.dtype))

    def missing(self, cells: Cells) -> Cells:
        """The positions in ``cells`` of cells that are not filled; the first position of each."""
        different, first = np.unique(cells, return_index=True)
        return np.sort(first[self._sums[different] == 0])

    def write(self, cells: Cells, exact: np.ndarray[Any, Any]) -> None:
        """Fill the cells with these rows of numbers; their checksums are written last.

        Raises:
            RunError: a number is too large for the file's number format, or the disk is full.
        """
        with np.errstate(over="ignore"):
            rows = exact.astype(self._numbers.dtype)
        if np.isinf(rows).sum() > np.isinf(exact).sum():
            largest = np.abs(exact[np.isfinite(exact)]).max()
            raise RunError(
                f"The teacher's knowledge reaches {largest:.3g}, but fp16 ends at 65504. Store it with "
                f"'dtype: fp32', in another {option('out')}."
            )
        sums = np.array([_checksum(row) for row in rows], self._sums.dtype)
        try:
            self._put(0, cells, rows)
            self._put(1, cells, sums)
        except OSError as error:
            raise RunError(
                f"Cannot store knowledge in {str(self.path)!r}: {error.strerror}. Make room there and continue with "
                f"{option('resume', True)}, or use 'knowledge: live' in another {option('out')}."
            ) from None

    def _put(self, number: int, cells: Cells, values: np.ndarray[Any, Any]) -> None:
        """Write each cell's value to one of the two files."""
        file = self._files[number]
        for cell, value in zip(cells.tolist(), values, strict=True):
            file.seek(cell * value.nbytes)
            file.write(value.tobytes())
        file.flush()

    def read(self, cells: Cells, device: torch.device) -> Target:
        """The target of these cells on the device. They must be filled."""
        return self.layout.target(torch.from_numpy(self._numbers[cells]).to(device))


def _checksum(row: np.ndarray[Any, Any]) -> int:
    """A filled cell's checksum, never 0."""
    return zlib.crc32(row.tobytes()) | 1


class StoredTargets:
    """The stored targets of a stage's losses; a missing one is computed when its image comes.

    Args:
        stores: for each loss whose knowledge is stored; losses may share one.
        views: number of views of an image.
    """

    def __init__(self, teacher: Teacher, stores: Mapping[Loss, Store], views: int) -> None:
        self.teacher, self.stores, self.views = teacher, stores, views

    def __call__(self, batch: Batch, losses: Sequence[Loss]) -> dict[Loss, Target]:
        """The targets of the stored ones among ``losses``, always read back from the file.

        Takes at most one forward of the teacher, over the images that any of them lacks.
        """
        stores = {self.stores[loss]: loss for loss in losses if loss in self.stores}
        if not stores:
            return {}
        assert batch.view is not None
        cells: Cells = (batch.index * self.views + batch.view).numpy()
        missing = {store: places for store in stores if len(places := store.missing(cells))}
        if missing:
            union = np.unique(np.concatenate(list(missing.values())))
            reading = self.teacher.read(batch.images[torch.from_numpy(union)], [stores[store] for store in missing])
            for store, places in missing.items():
                target = self.teacher.make_target(stores[store], reading)
                numbers = store.layout.flat(target).numpy()
                store.write(cells[places], numbers[np.searchsorted(union, places)])
        targets = {store: store.read(cells, batch.images.device) for store in stores}
        return {loss: targets[self.stores[loss]] for loss in losses if loss in self.stores}


class Stores:
    """A run's stores, each opened when a stage first needs it. All processes must ask for the same ones."""

    def __init__(self, fabric: Fabric, run: Path, data: ImageData, precision: Precision) -> None:
        self.fabric, self.folder, self.data, self.precision = fabric, run / FOLDER, data, precision
        self._open: dict[str, Store] = {}

    def open_for(self, teacher: Teacher, students: Iterable[Student]) -> StoredTargets | None:
        """The stored targets of these students' losses; None if their stages read the teacher live."""
        views = self.data.spec.augment.view_count or 0
        stores = {}
        weights = None
        for student in students:
            source = student.stage.knowledge
            for built in (term for row in student.terms for term in row):
                if isinstance(source, Stored) and reads_teacher(built.loss) and built.loss not in stores:
                    weights = weights or digest_of(teacher)
                    name = store_name(
                        weights, built.term.knowledge, built.loss, self.data, source.dtype, self.precision
                    )
                    stores[built.loss] = self._store(name, teacher, built.loss, source.dtype, self.data.rows * views)
        return StoredTargets(teacher, stores, views) if stores else None

    def _store(self, name: str, teacher: Teacher, loss: Loss, dtype: str, cells: int) -> Store:
        """The store of this name; the first process creates it if there is none."""
        if name not in self._open:
            black = torch.zeros(1, *self.data.shape, device=self.fabric.device)
            layout = TargetLayout.of(teacher.make_target(loss, teacher.read(black, [loss])))
            for makes in (True, False):
                if makes == (self.fabric.global_rank == 0):
                    self.folder.mkdir(exist_ok=True)
                    self._open[name] = Store(self.folder / name, layout, dtype, cells, checks=makes)
                self.fabric.barrier()
        return self._open[name]

    def remove(self) -> None:
        """Delete the files, which only save time."""
        self._open.clear()
        if self.fabric.global_rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def digest_of(teacher: Teacher) -> str:
    """A digest of the network's structure and of all its weights and buffers."""
    assert teacher.network is not None
    digest = hashlib.sha256(str(teacher.network).encode())
    digest.update(repr(teacher.interface).encode())
    plain, beside, _ = split(teacher.network.state_dict())
    digest.update(str(metadata(beside) or "").encode())
    for name, tensor in plain.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def store_name(
    teacher: str, knowledge: Knowledge, loss: Loss, data: ImageData, dtype: str, precision: Precision
) -> str:
    """The name of a store's file, different whenever its content would be.

    Args:
        teacher: its digest.
        knowledge: all of its options count, even those that only act on the student.
    """
    made_of = (
        teacher,
        repr(knowledge),
        f"{type(loss).__module__}.{type(loss).__qualname__}",
        loss.teacher_taps,
        loss.teacher_logits,
        data.fingerprint,
        data.shape,
        data.mean,
        data.std,
        data.spec.augment,
        data.seed,
        dtype,
        precision,
    )
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]


def refuse_if_full(files: Iterable[StoredFile], run: Path) -> None:
    """Check that the disk has room for the files, counting those already there.

    Raises:
        RunError: the files may need more.
    """
    needed = most_bytes(files)
    there = (
        sum(getattr(file.stat(), "st_blocks", 0) * 512 for file in (run / FOLDER).glob("*"))
        if os.path.isdir(run)
        else 0
    )
    folder = next(path for path in (run.absolute(), *run.absolute().parents) if os.path.exists(path))
    free = shutil.disk_usage(folder).free
    if needed > there + free:
        raise RunError(
            f"The stored knowledge may take {readable_size(needed)}, but {str(run)!r} has room for "
            f"{readable_size(there + free)}. Make room, set 'dtype: fp16' or fewer 'data.augment.views', use "
            f"'knowledge: live', or give another {option('out')}."
        )
