"""Losses on maps of real images beside the naive ones of the tests, and what of them is left in trained students.

    python docs/results/real_maps.py DATA TEACHER.safetensors STUDENT.safetensors ...

ResNet-26 and ResNet-8 in evaluation mode on test images of CIFAR-10, the first of the students also fresh. Naive: scalar
loops in float64 over both networks' maps in float64, from the papers' equations. Ours: as training has them, the teacher's
BatchNorm folded, in float32 and in bf16.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

import flowstill as fs
from flowstill.data import Data, open_data
from flowstill.engine.hardware import make_fabric
from flowstill.engine.precision import Precision
from flowstill.engine.teacher import Teacher
from flowstill.features.pairs import pair_sections
from flowstill.features.taps import Tapped
from flowstill.transfer.knowledge import KNOWLEDGE, Setting

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from oracles import baselines, dense, fsp, svd

FEW, MANY, SHAPE = 4, 1000, (3, 32, 32)


def dense_by_loops(teacher: list, student: list) -> float:
    """Eq. 2 over all overlapping spans."""
    spans = dense.spans(len(teacher) - 1)
    return dense.loss(teacher, student, spans, dense.alphas("equal", [len(maps[0]) for maps in teacher], spans))


def svd_by_loops(teacher: list, student: list) -> float:
    """Lee et al. (2018), Eq. 11, with one singular vector."""
    arrays = [[np.array(maps) for maps in side] for side in (teacher, student)]
    return svd.transfer_loss(*arrays, list(itertools.pairwise(range(len(teacher)))), 1)


NAIVE = {
    "fsp": lambda teacher, student: fsp.stage_one(teacher, student, "equal"),
    "dense": dense_by_loops,
    "svd": svd_by_loops,
    "nst": lambda teacher, student: 50 / 2 * baselines.nst(student[-1], teacher[-1]),
    "attention": lambda teacher, student: 1000 / 2 * sum(map(baselines.attention, student[1:], teacher[1:])),
}


def main(data_root: str, teacher_file: str, *student_files: str) -> None:
    """Print both tables."""
    images, _ = next(iter(open_data(Data("cifar10", root=data_root)).test_batches(batch=MANY)))
    teacher = fs.create("resnet26", 10, weights=teacher_file).eval().requires_grad_(False)
    torch.manual_seed(0)
    students = {"fresh": fs.create("resnet8", 10).eval()}
    students |= {Path(file).stem: fs.create("resnet8", 10, weights=file).eval() for file in student_files}
    print(f"{FEW} images  {'student':20} {'naive':>10} {'float32':>10} {'bf16':>10}   off by")
    for name, (kind, student) in itertools.product(NAIVE, list(students.items())[:2]):
        few = images[:FEW]
        expected = NAIVE[name](*(maps_of(network, few) for network in (teacher, student)))
        ours = [measured(name, teacher, student, few, dtype) for dtype in ("32", "bf16")]
        off = ", ".join(f"{value / expected - 1:+.1e}" for value in ours)
        print(f"{name:9} {kind:20} {expected:10.5f} {ours[0]:10.5f} {ours[1]:10.5f}   {off}")
    print(f"\n{MANY} images, evaluation mode " + "".join(f"{name:>12}" for name in NAIVE))
    for kind, student in students.items():
        values = [measured(name, teacher, student, images, "32") for name in NAIVE]
        print(f"{kind:29} " + "".join(f"{value:12.4f}" for value in values))


def maps_of(network: torch.nn.Module, images: torch.Tensor) -> list:
    """Where sections begin and end, as nested lists."""
    sections = fs.find_sections(network, SHAPE)
    taps = [sections[0].entry, *(section.exit for section in sections)]
    network = network.double()
    with torch.no_grad():
        reading = Tapped(network, taps)(images.double())
    maps = [reading[tap].tolist() for tap in taps]
    network.float()
    return maps


def measured(name: str, teacher: torch.nn.Module, student: torch.nn.Module, images: torch.Tensor, dtype: str) -> float:
    """The loss as a step of training computes it."""
    fabric = make_fabric("cpu", 1, Precision(dtype))
    setting = Setting(teacher, student, SHAPE, 10)
    loss = KNOWLEDGE.find(name)().build(pair_sections(teacher, student, SHAPE), setting)
    reader = Teacher(fabric, teacher)
    with torch.no_grad(), fabric.autocast():
        return float(
            loss.compare(
                Tapped(student, loss.student_taps)(images), reader.make_target(loss, reader.read(images, [loss]))
            )
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
