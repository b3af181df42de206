"""How large a student's FSP matrices are beside its teacher's, and how much of the teacher's they explain.

    python docs/results/flows_left.py DATA runs/vgg-first-stage

Means over a thousand test images of CIFAR-10, for each job of the run and for a fresh student. Size: the ratio of the root
mean squares. Explained: one minus the squared difference over the teacher's squares, 0 for a student without any flow. Last
the loss (Eq. 2, equal weights) that such a student has.
"""

import itertools
import sys

import torch

import flowstill as fs
from flowstill.data import open_data
from flowstill.knowledge.fsp import fsp_loss
from flowstill.recipes.load import load_recipe

ENDS = ("block1", "block2", "block3", "block4")


def flows(network: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """The FSP matrices of the sections between the blocks."""
    with torch.no_grad(), fs.Tapped(network.eval(), ENDS, until="taps") as tapped:
        maps = tapped(images)
    return [fs.fsp_matrix(maps[start], maps[end]) for start, end in itertools.pairwise(ENDS)]


def loss_of_none(wanted: list[torch.Tensor]) -> float:
    """What a student whose matrices are all zero loses."""
    alpha = 1 / sum(matrices[0].numel() for matrices in wanted)
    return float(fsp_loss([torch.zeros_like(matrices) for matrices in wanted], wanted, [alpha] * len(wanted)))


def main(data_root: str, folder: str) -> None:
    """Print the table."""
    run = fs.Run.open(folder)
    data = open_data(load_recipe(f"{folder}/recipe.yaml", data_root=data_root, set=["data.hold_out=0"]).data)
    images, _ = next(iter(data.test_batches(batch=1000)))
    augmented = next(iter(data.train_batches("all", batch=1000, steps=1))).images
    wanted = flows(run.network("teacher"), images)
    torch.manual_seed(0)
    students = {"fresh": fs.create("vgg-student", 10)}
    students |= {job: run.network(job) for job in run.jobs if job != "teacher"}
    print(f"{'student':12} {'size':>20} {'explained':>22}   of each section")
    for name, student in students.items():
        given = flows(student, images)
        pairs = list(zip(given, wanted, strict=True))
        size = [(g.square().mean() / w.square().mean()).sqrt().item() for g, w in pairs]
        explained = [1 - ((g - w).square().sum() / w.square().sum()).item() for g, w in pairs]
        print(f"{name:12} " + " ".join(f"{s:6.2f}" for s in size) + "   " + " ".join(f"{e:6.2f}" for e in explained))
    train = flows(run.network("teacher"), augmented)
    print(
        f"without any flow the loss is {loss_of_none(wanted):.4f}, on augmented training images {loss_of_none(train):.4f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
