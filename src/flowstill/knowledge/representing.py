"""Knowledge representing, the procedure: how W~ and the student take turns, and the methods built on it.

Liu et al. (2019), Algorithm 1; ``flowstill.knowledge.aggregation`` says what W~ is and how it is matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flowstill.knowledge.kdgan import KDGAN, with_adversaries
from flowstill.transfer.knowledge import Knowledge
from flowstill.transfer.methods import ANY_CHANNELS, TASK, register_method
from flowstill.transfer.procedures import register_procedure, schedule
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.schedules import Constant, Schedule
from flowstill.transfer.stages import Optimizer, Player, Stage, Term, TermLike, TermsLike, Update

GAMMA = 0.1  # of Eq. 9; the paper gives none
REPRESENT_LR = schedule((0.1, 30_000), (0.01, 48_000), (0.001, 64_000))[1]
MATCH_LR = schedule((1e-2, 30_000), (1e-3, 48_000), (1e-4, 64_000))[1]
LIU = "Liu et al. 2019"


@register_procedure
def alternating(
    *,
    steps: int,
    lr: Schedule | float,
    match_lr: Schedule | float,
    task: TermsLike = "labels",
    posterior: TermsLike = (),
    aggregation: Knowledge | str = "aggregation",
    gamma: Schedule | float = GAMMA,
    matching: TermsLike = "aggregated",
    recode: Recoding | None = Recoding(),  # noqa: B008 (frozen)
    optimizer: Optimizer = Optimizer(weight_decay=1e-5),  # noqa: B008 (frozen)
    decay_twice: bool = False,
) -> tuple[Stage]:
    """Knowledge representing (Liu et al. 2019, Algorithm 1): on every batch one step of Eq. 9, then one of Eq. 10.

    Step A trains the student and W~ together on the prediction loss plus gamma times the aggregation loss. Step B makes
    the student follow the features of W~, from a fresh forward pass and with recoded gradients. It changes neither W~
    nor the student's BatchNorm statistics, which belong to step A. Each step has its own optimiser; step A's decays the
    student's weights, so that a batch decays them once, as it does those of a student trained alone.

    The paper's sentence that Eq. 2 is solved by "alternatively minimizing" both losses puts the prediction loss into
    step A, since Eq. 9's other term does not reach the student. gamma and the number of steps have no printed values;
    as gamma acts on W~ alone, it is a factor on W~'s learning rate. After 80 steps on CIFAR-10 (ResNet-26 to 8, batch
    size 64, learning rate 0.1) the cost had fallen from 600 to 284, 231 and 288 with gamma 1, 0.1 and 0.01.

    Args:
        steps: number of batches.
        lr: learning rate of step A; in the paper 0.1, divided by ten after 30k and 48k steps.
        match_lr: learning rate of step B; in the paper 0.01, divided likewise.
        task: the prediction loss, such as the labels.
        posterior: what is added to the prediction loss: soft logits, NST, KDGAN.
        aggregation: the term of Eq. 9 that trains W~.
        gamma: its weight.
        matching: the terms of step B.
        recode: sparse recoding of step B's gradients; None for none, the paper's "KR-Dense".
        optimizer: of both steps, but for the decay in step B.
        decay_twice: whether step B decays the student's weights too.

    >>> (stage,) = alternating(steps=64, lr=0.1, match_lr=0.01)
    >>> [[term.knowledge.name for term in update.terms] for update in stage.updates]
    [['labels', 'aggregation'], ['aggregated']]
    """
    lr, match_lr, gamma = (
        Constant(value) if isinstance(value, (int, float)) else value for value in (lr, match_lr, gamma)
    )
    representing = Player(modules=("student", "adapters", "aggregate"), optimizer=optimizer, lr=lr)
    matching_optimizer = optimizer if decay_twice else replace(optimizer, weight_decay=0.0, l1=0.0)
    matched = Player(modules=("student", "adapters"), optimizer=matching_optimizer, lr=match_lr, recode=recode)
    term = Term(aggregation, gamma)
    step_a = Update("aggregate", task, (*_row(posterior), term))
    step_b = Update("student", transfer=matching, update_batchnorm=False)
    return (Stage("represent", steps, {"aggregate": representing, "student": matched}, ((step_a, step_b),)),)


def _row(terms: TermsLike) -> Sequence[TermLike]:
    return (terms,) if isinstance(terms, (Term, Knowledge, str, Mapping)) else terms


@register_method(
    "kr",
    transfers="what groups of layers do, each learnt by one layer that the student follows with sparse gradients",
    needs=ANY_CHANNELS,
    paper=LIU,
    reconstruction=True,
)
def _sparse() -> tuple[Stage]:
    return alternating(steps=TASK, lr=REPRESENT_LR, match_lr=MATCH_LR)


@register_method(
    "kr-dense",
    transfers="what groups of layers do, each learnt by one layer that the student follows with full gradients",
    needs=ANY_CHANNELS,
    paper=LIU,
    reconstruction=True,
)
def _dense() -> tuple[Stage]:
    return alternating(steps=TASK, lr=REPRESENT_LR, match_lr=MATCH_LR, recode=None)


@register_method(
    "kr-kdgan",
    transfers="what groups of layers do, each learnt by one layer, and labels that a discriminator takes for true ones",
    needs="sections; the same classes",
    paper=LIU,
    reconstruction=True,
)
def _with_kdgan() -> tuple[Stage]:
    (stage,) = alternating(steps=TASK, lr=REPRESENT_LR, match_lr=MATCH_LR, posterior=KDGAN())
    return (with_adversaries(stage),)
