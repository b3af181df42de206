"""KDGAN: student and teacher propose labels, a discriminator tells them from true ones, and both learn from each other.

Wang, Zhang, Sun, Qi: "KDGAN: Knowledge Distillation with Generative Adversarial Networks", NeurIPS 2018:

    min_{C, T} max_D  E_{y ~ p_u} log D(x, y) + alpha E_{y ~ p_C} log(1 - D(x, y)) + (1 - alpha) E_{y ~ p_T} log(1 - D(x, y))
                      + beta L_DS^C + gamma L_DS^T

The student C is the classifier, T the teacher, D the discriminator. Liu et al. (2019) compare with it without giving
their settings. This is a reconstruction:

* **T** is a copy of the recipe's teacher, which itself never changes. It stays in eval mode: BatchNorm keeps the
  teacher's statistics and Dropout is off, so that T is the same function for all three players.
* **D(x, y)** is a two-layer perceptron on [x, y]. x are the frozen teacher's last features, averaged over the
  positions; y is a label, one-hot if true, otherwise a sample on the simplex. Its output is the logit of D.
* **Samples** of C and T are Gumbel-softmax samples, whose temperature falls linearly from 1 to 0.1 over the stage. The
  noise is a function of seed, step and image, so that a resumed run, or one on several processes, draws the same.
* **L_DS^C** is tau^2 KL(T || C) of the softened predictions, **L_DS^T** tau^2 KL(C || T); each moves its own player
  only.
* **The labels** teach both, though the equation does not say so: C in a term next to this one, T in its own side's
  loss. Without them T forgets what it knows while C knows nothing.
* D sees labelled images only; each contributes one true label and one sample each of C and T.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from flowstill.data.batch import Batch
from flowstill.errors import RecipeError, ShapeError
from flowstill.features.pairs import Pairs
from flowstill.features.taps import Reading
from flowstill.knowledge.adversaries import Discriminator, TeacherCopy, deception_loss, discrimination_loss
from flowstill.knowledge.gumbel import gumbel_noise, gumbel_softmax, gumbel_temperature
from flowstill.knowledge.logits import soft_logits_loss
from flowstill.schema import specification
from flowstill.transfer.knowledge import Knowledge, Loss, Setting, register
from flowstill.transfer.methods import TASK, TASK_LR, register_method
from flowstill.transfer.procedures import register_procedure, stage
from flowstill.transfer.schedules import Constant, Schedule, multiplied
from flowstill.transfer.stages import Optimizer, Player, Stage, Term, TermsLike, Update

Side = Literal["discriminator", "teacher", "student"]
COPY = 0.01  # learning rate of the teacher's copy over the student's; no paper gives one
_DRAWS: dict[Side, int] = {"discriminator": 0, "teacher": 1, "student": 2}  # the noise of each is independent


class Round(NamedTuple):
    """What a side's loss is computed against.

    Attributes:
        features: (B, F), of the frozen teacher.
        labels: (B,), -1 where unknown.
        noise: (2, B, classes), for the samples of C and T.
        temperature: of the samples.
        teacher: T's logits (B, classes); empty for T's own side.
    """

    features: Tensor
    labels: Tensor
    noise: Tensor
    temperature: float
    teacher: Tensor


class KDGANLoss(Loss):
    """One side's loss. All sides of a stage share D and T; each offers only its own player for training.

    Args:
        knowledge: the options, among them the side.
        pairs: of sections; the last one's end in the teacher gives D's features.
        classes: number of classes of the data.
        seed: of the noise.
        discriminator: D.
        teacher: T.
    """

    student_logits = True
    same_classes = True

    def __init__(
        self,
        knowledge: KDGAN,
        pairs: Pairs,
        classes: int,
        seed: int,
        discriminator: Discriminator,
        teacher: TeacherCopy,
    ) -> None:
        super().__init__()
        self.knowledge, self.classes, self.seed = knowledge, classes, seed
        self.teacher_taps = (pairs[-1].teacher.exit,)
        self.discriminator, self.teacher_copy = discriminator, teacher

    def parts(self) -> dict[str, nn.Module]:
        """D on the discriminator's side, T on the teacher's, nothing on the student's."""
        if self.knowledge.side == "discriminator":
            return {"discriminator": self.discriminator}
        return {"teacher_copy": self.teacher_copy} if self.knowledge.side == "teacher" else {}

    @torch.no_grad()
    def target(self, teacher: Reading | None, batch: Batch | None = None) -> Round:
        """The frozen teacher's features, this step's noise, and the predictions of the current T."""
        teacher, batch = self.require_teacher(teacher), self.require_batch(batch)
        side, images = self.knowledge.side, batch.images
        draws = [
            gumbel_noise(self.seed, batch.step, batch.index.cpu(), self.classes, 2 * _DRAWS[side] + i) for i in (0, 1)
        ]
        return Round(
            teacher[self.teacher_taps[0]].float().mean((2, 3)),
            batch.labels,
            torch.stack(draws).float().to(images.device),
            gumbel_temperature(batch.step, batch.steps, self.knowledge.gumbel),
            images.new_empty(0) if side == "teacher" else self.teacher_copy(images),
        )

    def forward(self, student: Reading, target: Round) -> Tensor:
        """A float32 scalar.

        Raises:
            ShapeError: teacher, student and data do not have the same classes.
        """
        knowledge, logits_s = self.knowledge, self.require_logits("student", student).float()
        logits_t = self.teacher_copy(student.images) if knowledge.side == "teacher" else target.teacher
        if not logits_s.shape[1] == logits_t.shape[1] == self.classes:
            raise ShapeError(
                f"kdgan needs the data's {self.classes} classes in both networks, but the teacher gives "
                f"{logits_t.shape[1]} and the student {logits_s.shape[1]}. Fine-tune the teacher on the student's task "
                "first."
            )
        if knowledge.side == "student":
            fooled = deception_loss(self._score(logits_s, 0, target))
            return knowledge.alpha * fooled + knowledge.beta * soft_logits_loss(
                logits_s, logits_t, knowledge.temperature
            )
        if knowledge.side == "teacher":
            fooled = deception_loss(self._score(logits_t, 1, target))
            possible = logits_s.detach().masked_fill(logits_t == -torch.inf, -torch.inf)  # T never gives the others
            distilled = soft_logits_loss(logits_t, possible, knowledge.temperature)
            learned = F.cross_entropy(logits_t, target.labels, ignore_index=-1, reduction="sum") / len(logits_t)
            return (1 - knowledge.alpha) * fooled + knowledge.gamma * distilled + knowledge.teacher_labels * learned
        known = target.labels >= 0
        label = F.one_hot(target.labels.clamp(min=0), self.classes).float()
        real = self.discriminator(target.features, label)
        samples = [self._score(logits.detach(), i, target) for i, logits in enumerate((logits_s, logits_t))]
        losses = discrimination_loss(real, samples[0], samples[1], knowledge.alpha)
        return (losses * known).sum() / known.sum().clamp(min=1)

    def _score(self, logits: Tensor, number: int, target: Round) -> Tensor:
        """D's logits for samples drawn with C's (0) or T's (1) noise."""
        sample = gumbel_softmax(logits, target.noise[number], target.temperature)
        logit: Tensor = self.discriminator(target.features, sample)
        return logit


@register
@specification
class KDGAN(Knowledge):
    """One side of the game between student, teacher's copy and discriminator; ``adversarial`` sets up all three.

    Attributes:
        side: the player that learns from this term. ``discriminator``: a task term, since it needs labels, of the
            player that moves the role ``discriminator``. ``teacher``: a transfer term of the player that moves
            ``teacher_copy``. ``student``: a term next to the labels.
        alpha: the student's share of the sampled labels that the discriminator sees; the teacher's copy has the rest.
        beta: weight of L_DS^C, which pulls the student towards the teacher's copy.
        gamma: weight of L_DS^T, which pulls the teacher's copy towards the student.
        temperature: softens the predictions in L_DS^C and L_DS^T.
        teacher_labels: weight of the cross-entropy between the teacher's copy and the true labels, averaged over all
            images of the batch; unlabelled images count as zero.
        gumbel: temperatures of the Gumbel-softmax samples at the first and the last step of the stage.
        hidden: width of the discriminator's hidden layer.
    """

    summary: ClassVar[str] = "labels that a discriminator takes for true ones; needs the same classes in both networks"
    paper: ClassVar[str] = "Wang et al. 2018, KDGAN: Knowledge Distillation with Generative Adversarial Networks"
    left_open: ClassVar[str] = "the networks and weights of KDGAN"

    name: Literal["kdgan"] = "kdgan"
    side: Side = "student"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 1.0
    gamma: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 4.0
    teacher_labels: Annotated[float, Field(ge=0)] = 1.0
    gumbel: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 0.1)
    hidden: Annotated[int, Field(ge=1)] = 128

    def build(self, pairs: Pairs, setting: Setting | None = None) -> KDGANLoss:
        """The loss; D and T go into ``setting.shared`` as ``discriminator`` and ``teacher_copy``.

        Raises:
            ShapeError: there are no pairs.
            RecipeError: the setting has no teacher, or another term of the stage gave D another width.
        """
        self.require_pairs(pairs)
        setting, frozen = self.require_teacher(setting)
        shared = setting.shared
        if "discriminator" not in shared:
            features = pairs[-1].teacher.exit_shape[0]
            shared["discriminator"] = Discriminator(features, setting.classes, self.hidden)
        if "teacher_copy" not in shared:
            shared["teacher_copy"] = TeacherCopy(frozen)
        discriminator, teacher = shared["discriminator"], shared["teacher_copy"]
        assert isinstance(discriminator, Discriminator)
        assert isinstance(teacher, TeacherCopy)
        width = discriminator.first.out_features  # as the first term built it
        if width != self.hidden:
            raise RecipeError(
                f"kdgan: a stage has one discriminator, but 'hidden: {width}' in one term and {self.hidden} in another; "
                "give all the same."
            )
        return KDGANLoss(self, pairs, setting.classes, setting.seed, discriminator, teacher)


@register_procedure
def adversarial(
    *,
    steps: int,
    lr: Schedule | float,
    game: KDGAN = KDGAN(),  # noqa: B008 (frozen)
    task: TermsLike = "labels",
    optimizer: Optimizer | None = None,
) -> tuple[Stage]:
    """KDGAN (Wang et al. 2018): on every batch the discriminator moves, then the teacher's copy, then the student.

    Args:
        steps: number of batches.
        lr: the student's learning rate.
        game: the options of all three sides.
        task: the student's terms next to the game.
        optimizer: the student's.

    >>> (stage,) = adversarial(steps=64, lr=0.1)
    >>> [(update.player, [term.knowledge.name for term in update.terms]) for update in stage.updates]
    [('discriminator', ['kdgan']), ('teacher_copy', ['kdgan']), ('student', ['labels', 'kdgan'])]
    """
    return (
        with_adversaries(
            stage("adversarial", steps, lr, [Update(task=task, transfer=replace(game, side="student"))], optimizer)
        ),
    )


def with_adversaries(stage: Stage) -> Stage:
    """Add the student's two adversaries to a stage in which it plays ``kdgan``.

    Before each batch of the game the discriminator moves by Adam at 1e-3, then the teacher's copy by the student's
    optimiser at a hundredth of its learning rate. Knowledge representing with KDGAN is ``with_adversaries`` of the stage
    that ``alternating(..., posterior="kdgan")`` returns.

    Raises:
        RecipeError: no term of the stage is ``kdgan``.
    """
    games = [
        (update.player, term.knowledge)
        for update in stage.updates
        for term in update.terms
        if isinstance(term.knowledge, KDGAN)
    ]
    if not games:
        raise RecipeError(
            f"stage {stage.name!r} has no term 'kdgan', so it needs no adversaries. Add the term, or leave the stage "
            "unchanged."
        )
    name, game = games[0]
    student = stage.players[name]
    players = {
        "discriminator": Player(("discriminator",), Optimizer("adam", weight_decay=0.0), Constant(1e-3)),
        "teacher_copy": Player(("teacher_copy",), student.optimizer, multiplied(student.lr, COPY)),
    }
    # Both read the student, whose BatchNorm statistics belong to its own update.
    first = Update("discriminator", task=(Term(replace(game, side="discriminator")),), update_batchnorm=False)
    second = Update("teacher_copy", transfer=(Term(replace(game, side="teacher")),), update_batchnorm=False)
    plays = [
        any(isinstance(term.knowledge, KDGAN) for update in batch for term in update.terms) for batch in stage.cycle
    ]
    cycle = tuple(
        (first, second, *batch) if played else batch for played, batch in zip(plays, stage.cycle, strict=True)
    )
    return replace(stage, players={**players, **stage.players}, cycle=cycle)


@register_method(
    "kdgan",
    transfers="labels that a discriminator takes for true ones, in a game with a copy of the teacher",
    needs="sections; the same classes",
    paper="Wang et al. 2018",
    reconstruction=True,
)
def _kdgan() -> tuple[Stage]:
    return adversarial(steps=TASK, lr=TASK_LR)
