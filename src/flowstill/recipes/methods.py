"""The methods by name: what each transfers, what it needs of the two networks, and the stages that it consists of.

All train on the task for the same 64 000 updates with the same learning rates, those of Yim et al. (CVPR 2017) for
CIFAR-10 at batches of 256; what comes before, and the optimisers, are each paper's. The papers' tables, with the budgets
that they print, are recipes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from flowstill.data.named import NAMED
from flowstill.data.spec import Augment, Data
from flowstill.errors import RecipeError, did_you_mean
from flowstill.knowledge import Knowledge
from flowstill.knowledge.attention import Attention
from flowstill.knowledge.dense import Dense
from flowstill.knowledge.fsp import FSP
from flowstill.knowledge.hints import Hints
from flowstill.knowledge.kdgan import KDGAN
from flowstill.knowledge.logits import SoftLogits
from flowstill.knowledge.nst import NST
from flowstill.knowledge.svd import SVD
from flowstill.recipes.schema import Job, Recipe
from flowstill.transfer.procedures import (
    adversarial,
    alone,
    alternating,
    cyclic,
    joint,
    schedule,
    two_stage,
    with_adversaries,
)
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.schedules import Linear
from flowstill.transfer.stages import AdaptiveClip, Optimizer, Stage, Term

TASK, TASK_LR = schedule((0.1, 32_000), (0.01, 48_000), (0.001, 64_000))
FLOW, FLOW_LR = schedule((1e-3, 11_000), (1e-4, 16_000), (1e-5, 21_000))
VECTORS_LR = schedule((1e-2, 5_250), (1e-3, 10_500), (1e-4, 15_750), (1e-5, 21_000))[1]  # by ten at each quarter
HINTS, HINTS_LR = schedule((1e-4, 25_000), (1e-5, 35_000))
REPRESENT_LR = schedule((0.1, 30_000), (0.01, 48_000), (0.001, 64_000))[1]
MATCH_LR = schedule((1e-2, 30_000), (1e-3, 48_000), (1e-4, 64_000))[1]
CLIP = AdaptiveClip(epoch_steps=195)  # an epoch of CIFAR: 50 000 images in batches of 256
NESTEROV = Optimizer(nesterov=True, decay="weights")

Stages = Callable[[int], tuple[Stage, ...]]


@dataclass(frozen=True)
class Method:
    """A way to teach a student.

    transfers, needs (of the two networks), paper: each in a line. stages: made for the number of sections in which
    teacher and student pair. reconstruction: the papers leave so much open that results are to be marked as such.
    """

    transfers: str
    needs: str
    paper: str
    stages: Stages
    reconstruction: bool = False
    by_section: bool = False  # the stages depend on the number of sections; others may be given any


def find_method(name: str) -> Method:
    """The method called ``name``. Raises: RecipeError naming the nearest.

    >>> [stage.name for stage in find_method("fsp").stages(3)]
    ['transfer', 'task']
    """
    if name not in METHODS:
        near = did_you_mean(name, METHODS)
        raise RecipeError(
            " ".join(filter(None, (f"There is no method {name!r}.", near, "See `flowstill list methods`.")))
        )
    return METHODS[name]


def method_recipe(
    name: str,
    stages: tuple[Stage, ...],
    teacher: Job,
    student: Job,
    data: Data,
    *,
    alone_too: bool = False,
    seed: int = 0,
) -> Recipe:
    """A recipe in which ``teacher``, finished, teaches ``student`` by these stages.

    alone_too: train the student's network by itself as well, on the labels for as many updates as all stages have.

    >>> teacher, student = Job("resnet26", weights="teacher.safetensors"), Job("resnet8")
    >>> recipe = method_recipe("kd", find_method("kd").stages(3), teacher, student, Data("digits"))
    >>> list(recipe.jobs), recipe.jobs["student"].teacher
    (['teacher', 'student'], 'teacher')
    """
    jobs = {"teacher": replace(teacher, about=teacher.about or f"{teacher.network.name}, as it is given")}
    if alone_too:
        about = f"{student.network.name} alone, as many updates in all"
        jobs["student_alone"] = replace(student, stages=_by_itself(sum(stage.steps for stage in stages)), about=about)
    about = f"{student.network.name}, taught by {name}"
    jobs["student"] = replace(student, stages=stages, teacher="teacher", about=about)
    return Recipe(name, data, jobs, seed=seed, about=f"{teacher.network.name} into {student.network.name} by {name}")


def _by_itself(steps: int) -> tuple[Stage, ...]:
    """The task alone, its learning rates stretched to ``steps``."""
    (whole,) = alone(TASK, TASK_LR)
    return alone(steps, TASK_LR.scaled(steps / whole.steps))


def usual_data(name: str) -> Data:
    """A data set by name, with the augmentation that networks are usually trained with on it.

    >>> usual_data("cifar10").augment.crop, usual_data("owner/set").augment == Augment()
    (4, True)
    """
    return Data(name, augment=NAMED[name].augment if name in NAMED else Augment())


def _flow(knowledge: Knowledge) -> Stages:
    """A first stage on all images without labels, then the task (Yim et al. 2017, Algorithm 1)."""
    return lambda sections: two_stage(
        knowledge, transfer_steps=FLOW, transfer_lr=FLOW_LR, task_steps=TASK, task_lr=TASK_LR
    )


def _sequential(sections: int) -> tuple[Stage, ...]:
    steps = [Dense(step=step) for step in range(1, sections + 1)]
    return (*cyclic(steps, steps=FLOW, lr=FLOW_LR), *alone(TASK, TASK_LR))


def _vectors(sections: int) -> tuple[Stage, ...]:
    return two_stage(
        SVD(), transfer_steps=FLOW, transfer_lr=VECTORS_LR, task_steps=TASK, task_lr=TASK_LR, optimizer=NESTEROV
    )


def _clipped(knowledge: Knowledge, optimizer: Optimizer | None = None) -> Stages:
    """Task and transfer at once, the transfer's gradient clipped to the task's (Lee et al. 2018, section 3.2)."""
    return lambda sections: joint(knowledge, steps=TASK, lr=TASK_LR, rule=CLIP, optimizer=optimizer)


def _added(knowledge: Knowledge, share: float | None = None) -> Stages:
    """The task's loss and the transfer's in a sum; share: of the transfer, the task keeping the rest."""
    task = "labels" if share is None else Term("labels", round(1 - share, 6))  # type: ignore[arg-type]  # a name is read by Term
    transfer = Term(knowledge, share or 1.0)  # type: ignore[arg-type]  # and so is a number
    return lambda sections: joint(transfer, steps=TASK, lr=TASK_LR, task=task)


def _hints(knowledge: Hints) -> Stages:
    """Hints first; then the labels with soft logits, as Yim et al. (2017) train their FitNets."""
    soft = Term(SoftLogits(temperature=3.0, divergence="cross_entropy", squared=False), Linear((4.0, 1.0)))
    return lambda sections: (
        *cyclic([knowledge], steps=HINTS, lr=HINTS_LR),
        *joint(soft, steps=TASK, lr=TASK_LR),
    )


def _representing(recode: Recoding | None = Recoding(), game: KDGAN | None = None) -> Stages:  # noqa: B008 (frozen)
    def stages(sections: int) -> tuple[Stage, ...]:
        (made,) = alternating(steps=TASK, lr=REPRESENT_LR, match_lr=MATCH_LR, posterior=game or (), recode=recode)
        return (with_adversaries(made) if game else made,)

    return stages


_ENDS, _ANY, _BOTH = (
    "sections, with equal channels at their ends",
    "sections, of any channels",
    "sections; the same classes",
)
_YIM, _YEO, _LEE, _LIU = "Yim et al. 2017", "Yeo et al. 2018", "Lee et al. 2018", "Liu et al. 2019"

METHODS = {
    "fsp": Method("how features flow through each section (FSP matrices), before the task", _ENDS, _YIM, _flow(FSP())),
    "fsp-joint": Method(
        "FSP matrices beside the task, their gradient clipped to the task's", _ENDS, f"{_YIM}; {_LEE}", _clipped(FSP())
    ),
    "fsp-shuffled": Method(
        "FSP matrices with the teacher's channels in another order, for students that differ",
        _ENDS,
        _YIM,
        _flow(FSP(shuffle="realisable")),
    ),
    "dense": Method(
        "FSP matrices between all pairs of sections' ends, before the task", _ENDS, _YEO, _flow(Dense()), True
    ),
    "dense-sequential": Method(
        "the dense FSP matrices in steps, from the bottom of the network to its top",
        _ENDS,
        _YEO,
        _sequential,
        reconstruction=True,
        by_section=True,
    ),
    "svd": Method("how the singular vectors of each section's two ends relate, before the task", _ENDS, _LEE, _vectors),
    "svd-joint": Method(
        "the same beside the task, its gradient clipped to the task's", _ENDS, _LEE, _clipped(SVD(), NESTEROV)
    ),
    "kr": Method(
        "what groups of layers do, by one layer each that the student follows with sparse gradients",
        _ANY,
        _LIU,
        _representing(),
        True,
    ),
    "kr-dense": Method("the same with gradients as they are", _ANY, _LIU, _representing(recode=None), True),
    "kr-kdgan": Method(
        "the same as kr, and labels that a discriminator takes for true ones",
        _BOTH,
        _LIU,
        _representing(game=KDGAN()),
        True,
    ),
    "kdgan": Method(
        "labels that a discriminator takes for true ones, against a copy of the teacher",
        _BOTH,
        "Wang et al. 2018",
        lambda sections: adversarial(steps=TASK, lr=TASK_LR),
        True,
    ),
    "fitnet": Method(
        "the map of a middle layer, then soft logits beside the task",
        _BOTH,
        f"Romero et al. 2015; {_YIM}",
        _hints(Hints()),
    ),
    "fitnet3": Method(
        "the maps of all sections' ends, then soft logits beside the task",
        _BOTH,
        f"Romero et al. 2015; {_YIM}",
        _hints(Hints(layers="sections")),
    ),
    "kd": Method(
        "the teacher's softened predictions (soft logits)",
        "the same classes",
        "Hinton et al. 2015",
        _added(SoftLogits(), 0.9),
    ),
    "nst": Method("which spatial patterns the channels select", _ANY, "Huang and Wang 2017", _added(NST())),
    "at": Method(
        "where in the image each section's output is large", _ANY, "Zagoruyko and Komodakis 2017", _added(Attention())
    ),
}
