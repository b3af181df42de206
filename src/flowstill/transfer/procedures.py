"""The ways of transfer, as short functions that return stages; one loop runs them all."""

from __future__ import annotations

from collections.abc import Sequence

from flowstill.knowledge import Knowledge
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.schedules import Constant, Milestones, Schedule
from flowstill.transfer.stages import AdaptiveClip, Optimizer, Player, Stage, Sum, Term, Update

Terms = Term | Knowledge | str | Sequence[Term | Knowledge | str]
GAMMA = 0.01  # of Eq. 9; the paper gives none


def _update(task: Terms = (), transfer: Terms = (), rule: Sum | AdaptiveClip = Sum()) -> Update:  # noqa: B008 (frozen)
    return Update(task=task, transfer=transfer, rule=rule)  # type: ignore[arg-type]  # the short forms are read by Update


def stage(
    name: str, steps: int, lr: Schedule | float, cycle: Sequence[Update], optimizer: Optimizer | None = None
) -> Stage:
    """A stage of one player, the student with its adapters: batch t runs ``cycle[t % len(cycle)]``."""
    lr = Constant(lr) if isinstance(lr, (int, float)) else lr
    player = Player(lr=lr, optimizer=optimizer or Optimizer())
    return Stage(name, steps, {"student": player}, tuple((update,) for update in cycle))


def alone(steps: int, lr: Schedule | float, optimizer: Optimizer | None = None) -> tuple[Stage]:
    """The task by itself: how a teacher and a baseline train."""
    return (stage("task", steps, lr, [_update(task="labels")], optimizer),)


def two_stage(
    transfer: Terms, *, transfer_steps: int, transfer_lr: Schedule | float, task_steps: int, task_lr: Schedule | float,
    optimizer: Optimizer | None = None,
) -> tuple[Stage, Stage]:  # fmt: skip
    """First the transfer without labels, then the task with a fresh optimiser (Yim et al. 2017, Algorithm 1).

    >>> first, second = two_stage("fsp", transfer_steps=21, transfer_lr=1e-3, task_steps=64, task_lr=0.1)
    >>> first.name, first.needs_teacher, second.name, second.needs_teacher
    ('transfer', True, 'task', False)
    """
    first = stage("transfer", transfer_steps, transfer_lr, [_update(transfer=transfer)], optimizer)
    return (first, *alone(task_steps, task_lr, optimizer))


def joint(
    transfer: Terms, *, steps: int, lr: Schedule | float, rule: Sum | AdaptiveClip = Sum(),  # noqa: B008 (frozen)
    optimizer: Optimizer | None = None,
) -> tuple[Stage]:  # fmt: skip
    """Task and transfer in every step; ``rule`` says how their gradients meet (Lee et al. 2018, section 3.2)."""
    return (stage("joint", steps, lr, [_update("labels", transfer, rule)], optimizer),)


def cyclic(
    transfers: Sequence[Terms], *, steps: int, lr: Schedule | float, optimizer: Optimizer | None = None
) -> tuple[Stage]:
    """Several transfers in turn, one per batch: update t runs the (t mod n)-th (Yeo et al. 2018).

    ``steps`` counts all updates, so that the budget equals that of a single transfer.
    """
    return (stage("transfer", steps, lr, [_update(transfer=terms) for terms in transfers], optimizer),)


def alternating(
    *, steps: int, lr: Schedule | float, match_lr: Schedule | float, task: Terms = "labels", posterior: Terms = (),
    aggregation: Knowledge | str = "aggregation", gamma: Schedule | float = GAMMA,
    matching: Terms = "aggregated", recode: Recoding | None = Recoding(),  # noqa: B008 (frozen)
    optimizer: Optimizer = Optimizer(weight_decay=1e-5),  # noqa: B008 (frozen)
) -> tuple[Stage]:  # fmt: skip
    """Knowledge representing (Liu et al. 2019, Algorithm 1): on every batch one step of Eq. 9, then one of Eq. 10.

    Step A trains the student and W~ together on the prediction's loss and gamma times the aggregation's. Step B lets the
    student follow the features of W~, from a fresh forward and with its gradients recoded; W~ stays, and so do the
    student's BatchNorm statistics, which belong to step A. Each step has an optimiser of its own.

    The paper's sentence that Eq. 2 is solved by "alternatively minimizing" both losses puts the prediction's loss into
    step A, since Eq. 9's other term does not reach the student; gamma and the number of steps have no printed values.

    lr, match_lr: of step A and step B; in the paper 0.1 and 0.01, divided by ten after 30k and 48k steps.
    task, posterior: the prediction's loss, labels and what may be added: soft logits, NST, KDGAN.
    recode: None leaves step B's gradients as they are, the paper's "KR-Dense".

    >>> (stage,) = alternating(steps=64, lr=0.1, match_lr=0.01)
    >>> [[term.knowledge.name for term in update.terms] for update in stage.updates]
    [['labels', 'aggregation'], ['aggregated']]
    """
    lr, match_lr, gamma = (
        Constant(value) if isinstance(value, (int, float)) else value for value in (lr, match_lr, gamma)
    )
    representing = Player(modules=("student", "adapters", "aggregate"), optimizer=optimizer, lr=lr)
    matched = Player(modules=("student", "adapters"), optimizer=optimizer, lr=match_lr, recode=recode)
    term = Term(aggregation, gamma)  # type: ignore[arg-type]  # a name is read by Term
    step_a = Update("aggregate", task, (*_row(posterior), term))  # type: ignore[arg-type]  # the short forms likewise
    step_b = Update("student", transfer=matching, update_batchnorm=False)  # type: ignore[arg-type]
    return (Stage("represent", steps, {"aggregate": representing, "student": matched}, ((step_a, step_b),)),)


def _row(terms: Terms) -> Sequence[Term | Knowledge | str]:
    return (terms,) if isinstance(terms, (Term, Knowledge, str)) else terms


def schedule(*pairs: tuple[float, int]) -> tuple[int, Milestones]:
    """Read a paper's "0.1, 0.01 and 0.001 until 32k, 48k and 64k": the steps, and the learning rate over them.

    >>> schedule((0.1, 32_000), (0.01, 48_000), (0.001, 64_000))
    (64000, Milestones(milestones={0: 0.1, 32000: 0.01, 48000: 0.001}))
    """
    starts = [0, *(until for _, until in pairs)]
    return starts[-1], Milestones({start: value for start, (value, _) in zip(starts, pairs, strict=False)})
