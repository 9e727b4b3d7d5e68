"""Cross-entropy with hard, smoothed or mixed targets, and the paper's two ways to distil (section 4, Eq. 2 and 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from deit_jax.arrays import AnyArray
from deit_jax.errors import UserError, nearest

KINDS = {  # distill.kind: what the loss is, in reports
    "none": "cross-entropy",
    "soft": "soft distillation",
    "hard": "hard distillation",
    "second_cls": "cross-entropy of two heads",
}
NORMALIZATIONS = ("paper", "released")

Labels = Integer[AnyArray, "batch"]
Distributions = Float[AnyArray, "batch classes"]  # logits or probabilities


def soft_targets(labels: Labels, num_classes: int, label_smoothing: float = 0.0) -> Float[Array, "batch {num_classes}"]:
    """One-hot labels, smoothed: smoothing / classes everywhere, 1 - smoothing more at the label."""
    return jax.nn.one_hot(labels, num_classes) * (1 - label_smoothing) + label_smoothing / num_classes


def cross_entropy(
    logits: Distributions,
    targets: Labels | Distributions,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean over the batch of -sum(targets log softmax(logits)), float32.

    targets: labels (B,), smoothed here by `label_smoothing`, or probabilities (B, classes), taken as they are.
    """
    if targets.ndim == 1:
        targets = soft_targets(targets, logits.shape[-1], label_smoothing)
    return -(targets * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1).mean()


def distillation_loss(
    cls_logits: Distributions,
    dist_logits: Distributions | None,
    targets: Labels | Distributions,
    teacher_logits: Float[AnyArray, "batch teacher_classes"] | Labels | None = None,
    kind: str = "hard",
    alpha: float = 0.5,
    tau: float = 1.0,
    normalization: str = "paper",
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """The training objective, a scalar.

    Args:
        cls_logits: of the class head.
        dist_logits: of the distillation head; None for a model without one, whose class head then learns both terms.
        targets: labels (B,) or mixed probabilities (B, classes), for the class head.
        teacher_logits: (B, classes), the shape is checked; `hard` also accepts class indices (B,).
        kind: "none": CE(class). "hard" (Eq. 3): (1 - alpha) CE(class) + alpha CE(distillation, argmax of the teacher),
            never smoothed. "soft" (Eq. 2): (1 - alpha) CE(class) + alpha tau^2 KL(teacher || student), both at
            temperature tau. "second_cls": the paper's control, the second head learns the true labels too.
        alpha: weight of the second term, the paper's lambda. tau: temperature of `soft`.
        normalization: of the KL sum: "paper" divides by B, "released" by B x classes (weaker by the number of classes).
        label_smoothing: of the class head's targets where these are labels.

    Raises UserError for an unknown kind or normalization, a missing teacher, or a teacher of other classes.
    """
    if kind not in KINDS:
        raise UserError(f"distillation kind '{kind}' is not known{nearest(kind, KINDS)}: use {', '.join(KINDS)}")
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization '{normalization}' is not known: use {' or '.join(NORMALIZATIONS)}")
    base = cross_entropy(cls_logits, targets, label_smoothing)
    if kind == "none":
        return base
    student = (cls_logits if dist_logits is None else dist_logits).astype(jnp.float32)
    if kind == "second_cls":
        return (1 - alpha) * base + alpha * cross_entropy(student, targets, label_smoothing)
    if teacher_logits is None:
        raise UserError(f"distillation kind '{kind}' needs teacher_logits: give them, or use kind='none'")
    if teacher_logits.ndim == 2 and teacher_logits.shape[-1] != student.shape[-1]:
        raise UserError(
            f"teacher has {teacher_logits.shape[-1]} classes, student {student.shape[-1]}:"
            " they must know the same classes"
        )
    if kind == "hard":
        decision = teacher_logits if teacher_logits.ndim == 1 else teacher_logits.argmax(-1)
        return (1 - alpha) * base + alpha * cross_entropy(student, decision)
    if teacher_logits.ndim == 1:
        raise UserError("soft distillation needs the teacher's logits, not its decisions: give (batch, classes)")
    p = jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / tau)
    q = jax.nn.log_softmax(student / tau)
    # a stored top-k teacher has classes of probability 0, log -inf: their term is 0; a teacher's NaN stays one
    kl = jnp.where(p == -jnp.inf, 0, jnp.exp(p) * (p - q)).sum()
    kl /= student.shape[0] if normalization == "paper" else student.size
    return (1 - alpha) * base + alpha * tau**2 * kl
