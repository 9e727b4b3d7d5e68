r"""An objective of one's own: an `Objective` that `distill.kind` names.

    python main.py --config=configs/digits.py --workdir=runs/own \
        --config.distill.kind=examples.own_objective:squared_error

Kim et al. 2021 (arXiv 2105.08919) find the squared error of the logits better than the KL divergence.
"""

import jax
import jax.numpy as jnp

from deit_jax.losses import Objective, TermInputs


def squared_error_term(x: TermInputs) -> jax.Array:
    """Mean squared difference of the student's and the teacher's logits."""
    return jnp.square(x.student - x.teacher).mean()


squared_error = Objective("squared error of the logits", squared_error_term, teacher="logits")
