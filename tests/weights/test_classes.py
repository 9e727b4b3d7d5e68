"""A head's outputs are brought into the order of the data's classes by name, never by position in silence."""

import numpy as np
import pytest
from helpers import SMALL, state_of
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import fit_weights, load_weights

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def weights(tmp_path):
    save_file(state_of(SMALL, num_classes=4), tmp_path / "small.safetensors")
    weights = load_weights(tmp_path / "small.safetensors")
    weights.class_names = list(NAMES)
    return weights


def heads(params):
    return {name: (params[name]["kernel"], params[name]["bias"]) for name in ("head", "head_dist")}


def test_the_same_classes_in_another_order(weights):
    order = [2, 0, 3, 1]
    params, _, notes = fit_weights(weights, SMALL, class_names=[NAMES[i] for i in order])
    assert notes == ["outputs put into the order of the data's classes (class names)"]
    own = heads(weights.tree["params"])
    for name, (kernel, bias) in heads(params).items():
        np.testing.assert_array_equal(kernel, own[name][0][:, order])
        np.testing.assert_array_equal(bias, own[name][1][order])
    np.testing.assert_array_equal(params["pos_embed"], weights.tree["params"]["pos_embed"])


def test_the_same_order_changes_nothing(weights):
    params, _, notes = fit_weights(weights, SMALL, class_names=NAMES)
    assert notes == []
    np.testing.assert_array_equal(params["head"]["kernel"], weights.tree["params"]["head"]["kernel"])


def test_as_many_classes_of_other_names_get_new_heads(weights):
    others = ["ant", "bee", "cat", "elk"]
    params, _, notes = fit_weights(weights, SMALL, class_names=others)
    assert "head and head_dist newly made with 4 classes: the weights have as many, but other ones" in notes[0]
    assert "'elk'" in notes[0]
    assert params["head"]["kernel"].std() < 0.03
    with pytest.raises(UserError, match="does not fit: head and head_dist newly made"):
        fit_weights(weights, SMALL, class_names=others, new_parts=False)


def test_weights_that_do_not_name_their_classes(weights):
    weights.class_names = None
    params, _, notes = fit_weights(weights, SMALL, class_names=NAMES)
    assert notes == ["classes matched by position (the weights do not name their classes)"]
    np.testing.assert_array_equal(params["head"]["kernel"], weights.tree["params"]["head"]["kernel"])
    numbered, _, notes = fit_weights(weights, SMALL, class_names=["3", "2", "1", "0"])
    assert notes == ["outputs put into the order of the data's classes (class numbers)"]
    np.testing.assert_array_equal(numbered["head"]["bias"], weights.tree["params"]["head"]["bias"][::-1])


def test_another_count_makes_new_heads(weights):
    _, _, notes = fit_weights(weights, SMALL, num_classes=3, class_names=NAMES[:3])
    assert notes == ["head and head_dist newly made with 3 classes: the weights have 4 classes"]


def test_a_teacher_gets_no_new_parts(weights):
    """Issue 15, row 3: plain weights as a distilled teacher would have a random head."""
    plain, _, _ = fit_weights(weights, "deit_digits_patch4_16")
    weights.architecture.config["distilled"] = False
    weights.tree["params"] = plain
    with pytest.raises(UserError, match="newly made dist_token, head_dist .*: give the model these weights are of"):
        fit_weights(weights, SMALL, new_parts=False)
