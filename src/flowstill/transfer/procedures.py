"""The ways of transfer, as short functions that return stages; one loop runs them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flowstill.errors import RecipeError
from flowstill.knowledge import Knowledge
from flowstill.knowledge.kdgan import KDGAN
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.schedules import Constant, Cosine, Linear, Milestones, Schedule
from flowstill.transfer.stages import AdaptiveClip, Optimizer, Player, Stage, Sum, Term, Update

Terms = Term | Knowledge | str | Sequence[Term | Knowledge | str]
GAMMA = 0.1  # of Eq. 9; the paper gives none
COPY = 0.01  # the rate of KDGAN's teacher copy, in that of the student; no paper gives one


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
    transfer: Terms,
    *,
    transfer_steps: int,
    transfer_lr: Schedule | float,
    task_steps: int,
    task_lr: Schedule | float,
    optimizer: Optimizer | None = None,
) -> tuple[Stage, Stage]:
    """First the transfer without labels, then the task with a fresh optimiser (Yim et al. 2017, Algorithm 1).

    >>> first, second = two_stage("fsp", transfer_steps=21, transfer_lr=1e-3, task_steps=64, task_lr=0.1)
    >>> first.name, first.needs_teacher, second.name, second.needs_teacher
    ('transfer', True, 'task', False)
    """
    first = stage("transfer", transfer_steps, transfer_lr, [_update(transfer=transfer)], optimizer)
    return (first, *alone(task_steps, task_lr, optimizer))


def joint(
    transfer: Terms,
    *,
    steps: int,
    lr: Schedule | float,
    rule: Sum | AdaptiveClip = Sum(),  # noqa: B008 (frozen)
    task: Terms = "labels",
    optimizer: Optimizer | None = None,
) -> tuple[Stage]:
    """Task and transfer in every step; ``rule`` says how their gradients meet (Lee et al. 2018, section 3.2)."""
    return (stage("joint", steps, lr, [_update(task, transfer, rule)], optimizer),)


def cyclic(
    transfers: Sequence[Terms], *, steps: int, lr: Schedule | float, optimizer: Optimizer | None = None
) -> tuple[Stage]:
    """Several transfers in turn, one per batch: update t runs the (t mod n)-th (Yeo et al. 2018).

    ``steps`` counts all updates, so that the budget equals that of a single transfer.
    """
    return (stage("transfer", steps, lr, [_update(transfer=terms) for terms in transfers], optimizer),)


def blocks(
    transfers: Sequence[Terms], *, steps: int, lr: Schedule | float, optimizer: Optimizer | None = None
) -> tuple[Stage, ...]:
    """Several transfers one after another, to compare with ``cyclic``: a stage for each, with a fresh optimiser.

    They share ``steps`` as equally as whole numbers do, and in each the learning rate runs through its whole course.
    What a term draws for a stage, such as a shuffle, is drawn anew in each.
    Raises: RecipeError if there is no transfer, or a step is not to be had for each.

    >>> lr = Milestones({0: 0.1, 11: 0.01, 16: 0.001})
    >>> [(s.name, s.steps, s.players["student"].lr.milestones) for s in blocks(["fsp", "nst"], steps=21, lr=lr)]
    [('transfer-1', 10, {0: 0.1, 5: 0.01, 8: 0.001}), ('transfer-2', 11, {0: 0.1, 6: 0.01, 8: 0.001})]
    """
    count = len(transfers)
    if not 0 < count <= steps:
        raise RecipeError(
            f"blocks: {count} transfers cannot share {steps} steps; give at least one transfer, and a step for each."
        )
    lr = Constant(lr) if isinstance(lr, (int, float)) else lr
    shares = [(number + 1) * steps // count - number * steps // count for number in range(count)]
    return tuple(
        stage(f"transfer-{number}", share, lr.scaled(share / steps), [_update(transfer=terms)], optimizer)
        for number, (share, terms) in enumerate(zip(shares, transfers, strict=True), start=1)
    )


def alternating(
    *,
    steps: int,
    lr: Schedule | float,
    match_lr: Schedule | float,
    task: Terms = "labels",
    posterior: Terms = (),
    aggregation: Knowledge | str = "aggregation",
    gamma: Schedule | float = GAMMA,
    matching: Terms = "aggregated",
    recode: Recoding | None = Recoding(),  # noqa: B008 (frozen)
    optimizer: Optimizer = Optimizer(weight_decay=1e-5),  # noqa: B008 (frozen)
) -> tuple[Stage]:
    """Knowledge representing (Liu et al. 2019, Algorithm 1): on every batch one step of Eq. 9, then one of Eq. 10.

    Step A trains the student and W~ together on the prediction's loss and gamma times the aggregation's. Step B lets the
    student follow the features of W~, from a fresh forward and with its gradients recoded; W~ stays, and so do the
    student's BatchNorm statistics, which belong to step A. Each step has an optimiser of its own.

    The paper's sentence that Eq. 2 is solved by "alternatively minimizing" both losses puts the prediction's loss into
    step A, since Eq. 9's other term does not reach the student. gamma and the number of steps have no printed values; as
    gamma acts on W~ alone, it is a factor on W~'s learning rate. After 80 steps on CIFAR-10 (ResNet-26 to 8, batch 64,
    learning rate 0.1) the cost had fallen from 600 to 284, 231 and 288 with gamma 1, 0.1 and 0.01.

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


def adversarial(
    *,
    steps: int,
    lr: Schedule | float,
    game: KDGAN = KDGAN(),  # noqa: B008 (frozen)
    task: Terms = "labels",
    optimizer: Optimizer | None = None,
) -> tuple[Stage]:
    """KDGAN (Wang et al. 2018): on every batch the discriminator moves, then the teacher's copy, then the student.

    lr: the student's. game: the settings of all three sides.

    >>> (stage,) = adversarial(steps=64, lr=0.1)
    >>> [(update.player, [term.knowledge.name for term in update.terms]) for update in stage.updates]
    [('discriminator', ['kdgan']), ('teacher_copy', ['kdgan']), ('student', ['labels', 'kdgan'])]
    """
    return (
        with_adversaries(stage("adversarial", steps, lr, [_update(task, replace(game, side="student"))], optimizer)),
    )


def with_adversaries(stage: Stage) -> Stage:
    """A stage in which the student plays ``kdgan``, with the two that it plays against: before each of its batches the
    discriminator moves by Adam at 1e-3, then the teacher's copy as the student does, at a hundredth of its learning rate.

    Knowledge representing with KDGAN is ``with_adversaries`` of ``alternating(..., posterior="kdgan")``'s stage.

    Raises: RecipeError if no term of the stage is ``kdgan``.
    """
    games = [
        (update.player, term.knowledge)
        for update in stage.updates
        for term in update.terms
        if isinstance(term.knowledge, KDGAN)
    ]
    if not games:
        raise RecipeError(f"stage {stage.name!r} has no term 'kdgan', so there is nothing to play against.")
    name, game = games[0]
    student = stage.players[name]
    players = {
        "discriminator": Player(("discriminator",), Optimizer("adam", weight_decay=0.0), Constant(1e-3)),
        "teacher_copy": Player(("teacher_copy",), student.optimizer, _times(student.lr, COPY)),
    }
    # They read the student, whose BatchNorm statistics belong to its own update.
    first = Update("discriminator", task=(Term(replace(game, side="discriminator")),), update_batchnorm=False)
    second = Update("teacher_copy", transfer=(Term(replace(game, side="teacher")),), update_batchnorm=False)
    plays = [
        any(isinstance(term.knowledge, KDGAN) for update in batch for term in update.terms) for batch in stage.cycle
    ]
    cycle = tuple((first, second, *batch) if does else batch for does, batch in zip(plays, stage.cycle, strict=True))
    return replace(stage, players={**players, **stage.players}, cycle=cycle)


def _times(schedule: Schedule, factor: float) -> Schedule:
    """The same course at ``factor`` times the height."""

    def times(value: float) -> float:
        return float(f"{value * factor:.12g}")  # 0.007, where 0.7 * 0.01 is 0.006999999999999999

    match schedule:
        case Constant(value):
            return Constant(times(value))
        case Milestones(milestones):
            return Milestones({step: times(value) for step, value in milestones.items()})
        case Linear((first, last)):
            return Linear((times(first), times(last)))
        case Cosine():
            return replace(schedule, cosine=times(schedule.cosine))


def _row(terms: Terms) -> Sequence[Term | Knowledge | str]:
    return (terms,) if isinstance(terms, (Term, Knowledge, str)) else terms


def schedule(*pairs: tuple[float, int]) -> tuple[int, Milestones]:
    """Read a paper's "0.1, 0.01 and 0.001 until 32k, 48k and 64k": the steps, and the learning rate over them.

    >>> schedule((0.1, 32_000), (0.01, 48_000), (0.001, 64_000))
    (64000, Milestones(milestones={0: 0.1, 32000: 0.01, 48000: 0.001}))
    """
    starts = [0, *(until for _, until in pairs)]
    return starts[-1], Milestones({start: value for start, (value, _) in zip(starts, pairs, strict=False)})
