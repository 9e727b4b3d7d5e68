"""The suite checks annotated shapes and types at every call (see `conftest.py`)."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from deit_jax import losses, models
from deit_jax.augment import pipeline
from deit_jax.classes.match import ClassMap
from deit_jax.evaluate.inference import count_correct
from deit_jax.report.run_report import disagreement
from deit_jax.train.optimizer import make_optimizer

LOGITS, IMAGES = jnp.zeros((4, 10)), np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pipeline.flip(IMAGES, np.zeros(3, bool)),
        lambda: ClassMap(np.zeros(3, np.float32), 3, "names"),
        lambda: disagreement({"cls": np.zeros((3, 2), int)}),
        lambda: losses.cross_entropy(LOGITS, jnp.zeros(5, jnp.int32)),
        lambda: models.vit.fuse(LOGITS, LOGITS[:, :9]),
        lambda: count_correct({"cls": LOGITS[0]}, {"label": jnp.zeros(4, jnp.int32)}),
        lambda: make_optimizer({"lr": 1.0}),
    ],
    ids="augment classes report losses models evaluate train".split(),
)
def test_a_wrong_shape_or_type_is_refused_in_every_checked_room(call):
    with pytest.raises(TypeCheckError):
        call()
