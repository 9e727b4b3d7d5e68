"""Cross-entropy with hard, smoothed or mixed targets, and the table of training objectives (paper, section 4).

An objective (`distill.kind`) is one entry of `OBJECTIVES`: the class head learns the true labels, and the distillation
head what the entry's term says. Everything else that depends on the objective is read from its entry. One of the user's
own is an `Objective` in a module of theirs, which `distill.kind=package.module:name` adds (examples/own_objective.py).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError, nearest
from deit_jax.own import own_part

NORMALIZATIONS = ("paper", "released")

Labels = Integer[AnyArray, "batch"]
Distributions = Float[AnyArray, "batch classes"]  # logits or probabilities
Features = dict[str, Float[AnyArray, "batch _ dim"]]  # of the tokens "class" (one) and "patches"
TeacherOutput = Float[AnyArray, "batch teacher_classes"] | Labels | Features  # logits, hard labels, features


class TermInputs(NamedTuple):
    """What the distillation head's term is computed from.

    Attributes:
        student: logits of the distillation head, or of the class head where the model has no other.
        teacher: the teacher's logits, hard labels or features; None without a teacher.
        targets: true labels as probabilities, smoothed and mixed as for the class head; None where there are none.
        tau: temperature of both softmaxes.
        normalization: what a sum of KL divergences is divided by, see `soft_term`.
        features: the student's, projected to the teacher's width, for objectives that learn these; else {}.
    """

    student: Distributions
    teacher: TeacherOutput | None
    targets: Distributions | None
    tau: float
    normalization: str
    features: Features


def soft_targets(labels: Labels, num_classes: int, label_smoothing: float = 0.0) -> Float[Array, "batch {num_classes}"]:
    """One-hot labels, smoothed: smoothing / classes everywhere, 1 - smoothing more at the label."""
    return jax.nn.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes


def cross_entropy(
    logits: Distributions,
    targets: Labels | Distributions,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the batch of -sum(targets log softmax(logits)), float32.

    Args:
        logits: (B, classes).
        targets: labels (B,), smoothed here by `label_smoothing`, or probabilities (B, classes), used unchanged. A label
            outside 0..classes-1 makes the loss NaN, as in optax.
        label_smoothing: probability spread evenly over all classes.
    """
    if targets.ndim == 1:
        classes = logits.shape[-1]
        valid = (targets >= 0) & (targets < classes)
        targets = jnp.where(valid[:, None], soft_targets(targets, classes, label_smoothing), jnp.nan)
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1).mean()


def binary_cross_entropy(
    logits: Distributions, targets: Labels | Distributions, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean over batch and classes of each class's own binary cross-entropy, float32 (DeiT III's released code).

    Every class of a probability above 0 is right: both of a mixed image. Arguments as `cross_entropy`.
    """
    if targets.ndim == 1:
        targets = soft_targets(targets, logits.shape[-1], label_smoothing)
    right = (targets > 0).astype(jnp.float32)
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), right).mean()


CLASS_LOSSES = {"softmax": cross_entropy, "sigmoid": binary_cross_entropy}  # by `class_loss`


def hard_labels(teacher: Distributions | Labels) -> Integer[Array, "batch"]:
    """The class that the teacher predicts for each image; -1, which is no class, where its logits are not numbers."""
    if teacher.ndim == 1:
        return jnp.asarray(teacher)
    return jnp.where(jnp.isnan(teacher).any(-1), -1, teacher.argmax(-1))


def hard_term(x: TermInputs) -> Float[Array, ""]:
    """Cross-entropy with the teacher's hard labels, never smoothed (Eq. 3)."""
    assert not isinstance(x.teacher, dict | None)
    return cross_entropy(x.student, hard_labels(x.teacher))


def soft_term(x: TermInputs) -> Float[Array, ""]:
    """tau^2 KL(teacher || student), both at temperature tau (Eq. 2).

    The sum of the divergences is divided by B ("paper"), or by B x classes ("released": weaker by the number of
    classes).
    """
    assert not isinstance(x.teacher, dict | None)
    p = jax.nn.log_softmax(x.teacher.astype(jnp.float32) / x.tau)
    q = jax.nn.log_softmax(x.student / x.tau)
    # a stored top-k teacher has classes of probability 0, log -inf: their term is 0; a teacher's NaN stays one
    kl = jnp.where(p == -jnp.inf, 0, jnp.exp(p) * (p - q)).sum()
    return x.tau**2 * kl / (x.student.shape[0] if x.normalization == "paper" else x.student.size)


def label_term(x: TermInputs) -> Float[Array, ""]:
    """Cross-entropy with the true labels: the paper's control, a second class token."""
    assert x.targets is not None
    return cross_entropy(x.student, x.targets)


def cosine_distance(student: Float[Array, "... width"], teacher: Float[Array, "... width"]) -> Float[Array, ""]:
    """Mean over the tokens of 1 - cosine."""
    return optax.losses.cosine_distance(student, teacher, epsilon=1e-6).mean()


def smooth_l1(student: Float[Array, "... width"], teacher: Float[Array, "... width"]) -> Float[Array, ""]:
    """Mean over the numbers of d^2 / 2 where |d| < 1, else |d| - 1/2 (Girshick 2015)."""
    return optax.losses.huber_loss(student, teacher).mean()


def features_term(x: TermInputs, distance: Callable) -> Float[Array, ""]:
    """The distance of the student's projected features from the teacher's: the class token's and the patches' mean,
    each counting half where both are learned."""
    assert isinstance(x.teacher, dict)
    return jnp.stack([distance(x.features[kind], found) for kind, found in x.teacher.items()]).mean()


@dataclasses.dataclass(frozen=True)
class Objective:
    """One training objective.

    Attributes:
        title: its name in reports.
        term: the distillation head's loss; None: the class head alone is trained.
        teacher: what the term needs of a teacher: nothing (None), its hard labels, logits, or features.
        two_heads: whether the student must have a distillation head.
        settings: {recipe: {setting: value}} where it differs from the recipe's value for all objectives.
    """

    title: str
    term: Callable[[TermInputs], Float[Array, ""]] | None = None
    teacher: Literal["hard labels", "logits", "features"] | None = None
    two_heads: bool = False
    settings: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def teaches_classes(self) -> bool:
        """Whether it has a teacher that predicts classes."""
        return self.teacher in ("hard labels", "logits")

    @property
    def store_kind(self) -> str:
        """The kind of label store it reads (`label.kind`): the k most probable classes, hard labels alone, or none."""
        return {"logits": "topk", "hard labels": "hard"}.get(self.teacher or "", "")


# The paper gives lambda and tau for soft distillation; the released code has one default for both kinds.
_PAPER_SOFT = {"distill.alpha": 0.1, "distill.tau": 3.0}

OBJECTIVES: dict[str, Objective] = {
    "none": Objective("cross-entropy"),
    "soft": Objective(
        "soft distillation",
        soft_term,
        teacher="logits",
        settings={"paper": _PAPER_SOFT, "tuned": _PAPER_SOFT, "function_matching": {"distill.alpha": 1.0}},
    ),
    "hard": Objective("hard distillation", hard_term, teacher="hard labels"),
    "second_cls": Objective("cross-entropy of two heads", label_term, two_heads=True),
    "features": Objective(
        "feature distillation", functools.partial(features_term, distance=cosine_distance), teacher="features"
    ),
    "features_l1": Objective(
        "feature distillation by smooth L1", functools.partial(features_term, distance=smooth_l1), teacher="features"
    ),
}


def add_objective(name: str) -> None:
    """Add the `Objective` that `package.module:name` is to the table, under that name. Raises UserError."""
    with own_part("distill.kind", name) as entry:
        if not isinstance(entry, Objective):
            raise UserError(f"distill.kind {name} is a {type(entry).__name__}: give a deit_jax.losses.Objective")
    OBJECTIVES[name] = entry


def distillation_terms(
    cls_logits: Distributions,
    dist_logits: Distributions | None,
    targets: Labels | Distributions | None,
    teacher_output: TeacherOutput | None = None,
    *,
    kind: str = "hard",
    tau: float = 1.0,
    normalization: str = "paper",
    label_smoothing: float = 0.0,
    alpha: float = 0.5,
    class_loss: str = "softmax",
    features: Features | None = None,
) -> dict[str, Float[Array, ""]]:
    """The unweighted terms of the training objective.

    Args:
        cls_logits: of the class head.
        dist_logits: of the distillation head; None for a model without one, whose class head then learns both terms.
        targets: labels (B,) or mixed probabilities (B, classes), for the class head; None where only the teacher is
            learned from.
        teacher_output: logits (B, classes), hard labels (B,) where the objective needs no more, or features.
        kind: a key of `OBJECTIVES`.
        tau: temperature of soft distillation.
        normalization: of its KL sum, "paper" or "released".
        label_smoothing: of the class head's targets where these are labels.
        alpha: weight of the second term: at 0 and 1 the term whose weight is 0 is not computed.
        class_loss: a key of `CLASS_LOSSES`, for the class head.
        features: the student's, where the objective learns the teacher's.

    Returns {"class_loss"}, and "distillation_loss" where the objective has a second term.

    Raises:
        UserError: an unknown kind or normalization, a missing teacher, or one of another number of classes.
    """
    if kind not in OBJECTIVES:
        raise UserError(
            f"distillation kind '{kind}' is not known{nearest(kind, OBJECTIVES)}: use {', '.join(OBJECTIVES)}"
        )
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization '{normalization}' is not known: use {' or '.join(NORMALIZATIONS)}")
    objective = OBJECTIVES[kind]
    terms = {}
    if objective.term is None or alpha != 1:
        if targets is None:
            raise UserError(f"distillation kind '{kind}' needs targets: give them, or distill with alpha=1")
        terms["class_loss"] = CLASS_LOSSES[class_loss](cls_logits, targets, label_smoothing)
    if objective.term is None or alpha == 0:
        return terms
    student = (cls_logits if dist_logits is None else dist_logits).astype(jnp.float32)
    classes = student.shape[-1]
    if objective.teacher is not None:
        check_teacher_output(kind, objective, teacher_output, classes)
    if objective.teacher == "features" and features is None:
        raise UserError(f"distill.kind '{kind}' needs features of the student's: give them, projected")
    if targets is not None and targets.ndim == 1:
        targets = soft_targets(targets, classes, label_smoothing)
    inputs = TermInputs(student, teacher_output, targets, tau, normalization, features or {})
    return terms | {"distillation_loss": objective.term(inputs)}


def check_teacher_output(kind: str, objective: Objective, teacher: TeacherOutput | None, classes: int) -> None:
    """Raise UserError where a teacher's output is not what the objective needs. classes: the student's."""
    if teacher is None:
        raise UserError(f"distillation kind '{kind}' needs the teacher's output: give it, or use kind='none'")
    if isinstance(teacher, dict):
        return
    if teacher.ndim == 2 and teacher.shape[-1] != classes:
        raise UserError(
            f"the teacher has {teacher.shape[-1]} classes, the student {classes}: both must have the same classes"
        )
    if teacher.ndim == 1 and objective.teacher == "logits":
        raise UserError(f"{objective.title} needs the teacher's logits, not its hard labels: give (batch, classes)")


def weighted_sum(terms: Mapping[str, Float[Array, ""]], alpha: float) -> Float[Array, ""]:
    """(1 - alpha) x the class term + alpha x the distillation term (the paper's lambda); one alone is the loss."""
    if len(terms) == 1:
        return next(iter(terms.values()))
    return (1 - alpha) * terms["class_loss"] + alpha * terms["distillation_loss"]


def distillation_loss(
    cls_logits: Distributions,
    dist_logits: Distributions | None,
    targets: Labels | Distributions | None,
    teacher_logits: TeacherOutput | None = None,
    kind: str = "hard",
    alpha: float = 0.5,
    tau: float = 1.0,
    normalization: str = "paper",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The training objective, a scalar: `weighted_sum` of the `distillation_terms`, whose arguments and errors these
    are, of the objectives of labels and logits.

    alpha: weight of the second term, the paper's lambda. By kind: "none": CE(class). "hard" (Eq. 3): (1 - alpha)
    CE(class) + alpha CE(distillation, argmax of the teacher). "soft" (Eq. 2): (1 - alpha) CE(class) + alpha tau^2
    KL(teacher || distillation). "second_cls": the second head learns the true labels too.
    """
    settings = {"kind": kind, "tau": tau, "normalization": normalization, "label_smoothing": label_smoothing}
    terms = distillation_terms(cls_logits, dist_logits, targets, teacher_logits, alpha=alpha, **settings)
    return weighted_sum(terms, alpha)


def teacher_agreement(
    cls_logits: Distributions, dist_logits: Distributions | None, teacher: TeacherOutput | None
) -> dict[str, Float[Array, ""]]:
    """Fraction of the images for which each head predicts the teacher's hard label; {} without such a teacher."""
    if teacher is None or isinstance(teacher, dict):
        return {}
    heads = {"cls_agreement": cls_logits} | ({} if dist_logits is None else {"dist_agreement": dist_logits})
    return {name: (logits.argmax(-1) == hard_labels(teacher)).mean() for name, logits in heads.items()}
