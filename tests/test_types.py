"""The shapes and dtypes that functions state are checked at each call of the suite (conftest.py)."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import deit_jax
from deit_jax.losses import cross_entropy, soft_targets

LOGITS = jnp.zeros((4, 10))


@pytest.mark.parametrize(
    ("call", "parameter"),
    [
        (lambda: cross_entropy(LOGITS, np.zeros((3, 10), np.float32)), "targets"),  # another batch
        (lambda: cross_entropy(LOGITS, np.zeros(4, np.float32)), "targets"),  # labels are integers
        (lambda: deit_jax.resize_pos_embed(np.zeros((2, 5, 8), np.float32), (3, 3)), "pos_embed"),  # one embedding
        (lambda: deit_jax.augment.normalize(LOGITS, (0.5,), (0.5,)), "images"),
    ],
)
def test_a_wrong_argument_is_refused(call, parameter):
    with pytest.raises(TypeCheckError, match=f"parameter '{parameter}'"):
        call()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64])
def test_labels_are_of_any_integer_type(dtype):
    labels = np.array([0, 1, 2, 9], dtype)
    np.testing.assert_array_equal(soft_targets(labels, 10), np.eye(10)[labels])
    loss = deit_jax.distillation_loss(LOGITS, LOGITS, labels, labels, kind="hard")
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


def test_a_position_embedding_may_be_on_the_host():
    grid = deit_jax.resize_pos_embed(np.ones((1, 5, 8), np.float32), (3, 3))
    np.testing.assert_allclose(grid, np.ones((1, 10, 8)), rtol=1e-6)
