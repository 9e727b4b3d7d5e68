"""The student that a config describes."""

import pytest

from deit_jax.config import default_config, resolve
from deit_jax.errors import UserError
from deit_jax.student import make_student


def student_of(name: str, **model):
    config = default_config()
    config.model.update(model, name=name)
    return make_student(resolve(config), 10)


def test_dropout_and_stochastic_depth_reach_every_model_that_has_them():
    vit = student_of("deit_digits_patch4_16", drop_rate=0.1, drop_path_rate=0.3).build.keywords
    net = student_of("efficientnet_b0", drop_rate=0.4).build.keywords
    assert (vit["drop_rate"], vit["drop_path_rate"]) == (0.1, 0.3)
    assert (net["drop_rate"], net["drop_path_rate"]) == (0.4, 0.1), "the recipe's, where none is set"


@pytest.mark.parametrize("setting", ["drop_rate", "drop_path_rate"])
def test_a_model_without_them_refuses_them(setting):
    assert "drop_rate" not in student_of("regnety_digits").build.keywords
    with pytest.raises(UserError, match=f"model.{setting} is 0.2, but regnety_digits has none: leave it out"):
        student_of("regnety_digits", **{setting: 0.2})
