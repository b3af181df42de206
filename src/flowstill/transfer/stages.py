"""Who moves on which loss, and how the losses' gradients are combined: a stage is steps over a cycle of updates.

The constructors take short forms, which each class spells out for type checkers in an ``__init__``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, SerializeAsAny, model_validator
from pydantic_core import ArgsKwargs

from flowstill.errors import did_you_mean
from flowstill.schema import specification
from flowstill.schema.text import Name
from flowstill.transfer.knowledge import Knowledge, parse_knowledge
from flowstill.transfer.recoding import Recoding
from flowstill.transfer.rules import Rule, Sum, parse_rule
from flowstill.transfer.schedules import Constant, Schedule, ScheduleLike

Role = Literal["student", "adapters", "aggregate", "discriminator", "teacher_copy"]
PLAYER_KEYS = ("lr", "optimizer")  # a short stage's options of its one player
UPDATE_KEYS = ("task", "transfer", "rule", "update_batchnorm")  # and of its one update


def _as_term(value: Any) -> Any:
    """``fsp`` and ``{name: fsp, weight: 2}`` are short for ``{knowledge: {name: fsp}, weight: 2}``."""
    if isinstance(value, (str, Knowledge)):
        return {"knowledge": value}
    if isinstance(value, dict) and "name" in value and "knowledge" not in value:
        rest = dict(value)
        weight = {"weight": rest.pop("weight")} if "weight" in rest else {}
        return {"knowledge": rest, **weight}
    return value


def _as_tuple(value: Any) -> Any:
    """A single item is short for a tuple of one."""
    return value if isinstance(value, (tuple, list)) else (value,)


@specification
class Term:
    """A loss: what is matched, and how much it counts.

    Attributes:
        knowledge: what is matched; ``fsp`` is short for ``{name: fsp}``.
        weight: factor of the loss, a number or a schedule over the stage.
    """

    knowledge: Annotated[Knowledge, PlainValidator(parse_knowledge), SerializeAsAny()]
    weight: Schedule = Constant(1.0)

    if TYPE_CHECKING:

        def __init__(self, knowledge: Knowledge | str | Mapping[str, Any], weight: ScheduleLike = 1.0) -> None: ...


TermLike = Term | Knowledge | str | Mapping[str, Any]
TermsLike = TermLike | Sequence[TermLike]
Terms = Annotated[tuple[Annotated[Term, BeforeValidator(_as_term)], ...], BeforeValidator(_as_tuple)]


@specification
class Optimizer:
    """How a player steps.

    Attributes:
        name: the optimiser's update rule.
        momentum: of ``sgd`` and ``rmsprop``; the others ignore it.
        nesterov: use Nesterov momentum; ``sgd`` only.
        weight_decay: factor of the L2 term; ``adamw`` decays the weights directly instead.
        decay: the parameters that weight decay and the L1 penalty apply to: ``all``, or only ``weights`` (no biases, no
            norms).
        l1: factor of the L1 penalty, which adds ``l1 * sign(w)`` to the gradient.
    """

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    decay: Literal["all", "weights"] = "all"
    l1: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs the optimiser sgd, with a momentum above 0")


@specification
class Player:
    """Who moves: modules by role, with one optimiser and one learning rate schedule over the stage's steps.

    Attributes:
        modules: roles of the modules that it moves: the ``student``, the ``adapters`` that losses own, ``aggregate``,
            ``discriminator`` or ``teacher_copy``.
        optimizer: how it steps.
        lr: learning rate, a number or a schedule over the stage.
        recode: sparse recoding of its gradients, before weight decay and momentum; None for none.
    """

    modules: tuple[Role, ...] = ("student", "adapters")
    optimizer: Optimizer = Optimizer()
    lr: Schedule = Constant(0.1)
    recode: Recoding | None = None

    if TYPE_CHECKING:

        def __init__(
            self,
            modules: Sequence[Role] = ("student", "adapters"),
            optimizer: Optimizer | Mapping[str, Any] = ...,
            lr: ScheduleLike = 0.1,
            recode: Recoding | Mapping[str, Any] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        if self.lr.smallest < 0:
            raise ValueError(f"expected a learning rate of at least 0, got {self.lr.smallest:g}")


@specification
class Update:
    """One forward, one gradient, one step of one player.

    Attributes:
        player: name of the player that steps.
        task: terms that see labelled images only.
        transfer: terms that see all images.
        rule: how the gradients of task and transfer are combined.
        update_batchnorm: whether this forward pass updates the student's BatchNorm statistics.
    """

    player: str = "student"
    task: Terms = ()
    transfer: Terms = ()
    rule: Annotated[Rule, PlainValidator(parse_rule), SerializeAsAny()] = Sum()
    update_batchnorm: bool = True

    if TYPE_CHECKING:

        def __init__(
            self,
            player: str = "student",
            task: TermsLike = (),
            transfer: TermsLike = (),
            rule: Rule | str | Mapping[str, Any] = "sum",
            update_batchnorm: bool = True,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.task and not self.transfer:
            raise ValueError("an update needs at least one term in 'task' or 'transfer'")
        if self.rule.apart and not (self.task and self.transfer):
            raise ValueError(f"{self.rule.name} needs both a task and a transfer term")

    @property
    def terms(self) -> tuple[Term, ...]:
        """Task terms, then transfer terms."""
        return self.task + self.transfer


@specification
class Live:
    """The teacher reads every batch."""

    name: Literal["live"] = "live"


@specification
class Stored:
    """The teacher's knowledge of each image and view is computed once, then read from disk.

    The file stays in the run's folder until the run is finished. The losses equal those of ``live`` up to rounding.

    Attributes:
        dtype: number format of the file.
        views: the most augmented views of an image that may be stored; an augmentation with more is refused.
    """

    name: Literal["stored"] = "stored"
    dtype: Literal["fp32", "fp16"] = "fp32"
    views: Annotated[int, Field(ge=1)] = 1


Source = Annotated[
    Live | Stored,
    Field(discriminator="name"),
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]


Cycle = tuple[Annotated[tuple[Update, ...], BeforeValidator(_as_tuple)], ...]


def _as_stage(value: Any) -> Any:
    """The short form: ``task``, ``transfer``, ``rule``, ``lr`` and ``optimizer`` of one player called ``student``."""
    if isinstance(value, ArgsKwargs):
        given = value.kwargs or {}
        return value if len(value.args) > 2 else ArgsKwargs(value.args, _as_stage(dict(given)))
    if not isinstance(value, dict) or "cycle" in value or "players" in value:
        return value
    rest = dict(value)
    player = {key: rest.pop(key) for key in PLAYER_KEYS if key in rest}
    update = {key: rest.pop(key) for key in UPDATE_KEYS if key in rest}
    return {**rest, "players": {"student": player}, "cycle": ((update,),)}


@specification
class Stage:
    """``steps`` over one cycle of updates: batch t runs ``cycle[t % len(cycle)]``, each player with its own optimiser.

    ``Stage("task", 500, task="labels", lr=0.1)`` is short for one player, the student, and one update; it takes
    ``task``, ``transfer``, ``rule`` and ``update_batchnorm`` of the update, ``lr`` and ``optimizer`` of the player.

    Attributes:
        name: the stage's name, part of the names of its files.
        steps: number of batches.
        players: who moves, by name.
        cycle: the updates of each batch, in order; after the last entry the first comes again.
        knowledge: whether the teacher reads every batch, ``live``, or its knowledge is ``stored`` on disk.
        fresh_head: reinitialise the student's last layer before the stage.
    """

    name: Name
    steps: Annotated[int, Field(ge=1)]
    players: dict[str, Player]
    cycle: Cycle
    knowledge: Source = Live()
    fresh_head: bool = False

    _short = model_validator(mode="before")(_as_stage)

    if TYPE_CHECKING:

        def __init__(
            self,
            name: str,
            steps: int,
            players: Mapping[str, Player | Mapping[str, Any]] = ...,
            cycle: Sequence[Update | Sequence[Update]] = ...,
            knowledge: Live | Stored | str | Mapping[str, Any] = "live",
            fresh_head: bool = False,
            *,
            task: TermsLike = (),
            transfer: TermsLike = (),
            rule: Rule | str | Mapping[str, Any] = "sum",
            update_batchnorm: bool = True,
            lr: ScheduleLike = 0.1,
            optimizer: Optimizer | Mapping[str, Any] = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not self.cycle or not all(self.cycle):
            raise ValueError(f"stage {self.name!r}: a cycle needs at least one update for each batch")
        for update in self.updates:
            if update.player not in self.players:
                raise ValueError(
                    f"stage {self.name!r}: no player {update.player!r}. {did_you_mean(update.player, self.players)}"
                )

    @property
    def updates(self) -> tuple[Update, ...]:
        """All updates of the cycle, in order."""
        return tuple(update for batch in self.cycle for update in batch)

    @property
    def rhythm(self) -> tuple[tuple[bool, bool], ...]:
        """For each batch of the cycle, whether a task term sees it and whether a transfer term does."""
        return tuple((any(u.task for u in batch), any(u.transfer for u in batch)) for batch in self.cycle)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term reads the teacher."""
        return any(term.knowledge.needs_teacher for update in self.updates for term in update.terms)

    @property
    def needs_float32(self) -> tuple[str, ...]:
        """The names of its kinds of knowledge that bfloat16 spoils."""
        kinds = (term.knowledge for update in self.updates for term in update.terms)
        return tuple(dict.fromkeys(knowledge.name for knowledge in kinds if knowledge.needs_float32))

    @property
    def stores(self) -> bool:
        """Whether the teacher's knowledge is kept on disk."""
        return self.needs_teacher and isinstance(self.knowledge, Stored)

    @property
    def reads_sections(self) -> bool:
        """Whether any term is built for sections of the two networks."""
        return any(term.knowledge.reads_sections for update in self.updates for term in update.terms)
