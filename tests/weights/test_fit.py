"""Weights fitted into other models: positions, heads by class name, distillation."""

import logging

import jax
import numpy as np
import pytest
import seeded
from helpers import SMALL, fit_named, state_of
from safetensors.numpy import save_file

import deit_jax
from deit_jax.errors import UserError
from deit_jax.weights import load_weights

NAMES = ["ant", "bee", "cat", "dog"]
PLAIN = "deit_digits_patch4_16"


def test_another_image_size_resizes_the_positions(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        model = deit_jax.load_model(path, img_size=(24, 32))
    assert "pos_embed resized from 4x4 to 6x8 patches" in caplog.text
    expected = deit_jax.resize_pos_embed(state["pos_embed"], (6, 8), prefix_tokens=2)
    np.testing.assert_array_equal(model.pos_embed[...], expected)
    assert model(np.zeros((1, 24, 32, 3), np.float32)).shape == (1, 10)


@pytest.mark.parametrize(("size", "grid"), [([24, 32], (6, 8)), (np.int64(24), (6, 6)), (np.array([8, 8]), (2, 2))])
def test_sizes_of_every_type(small, size, grid):
    assert deit_jax.load_model(small[0], img_size=size).grid == grid
    params, _, _ = fit_named(load_weights(small[0], img_size=size), SMALL, img_size=size)
    assert params["pos_embed"].shape[1] == 2 + grid[0] * grid[1]


def test_other_classes_make_new_heads(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        model = deit_jax.load_model(path, num_classes=3)
    assert "head and head_dist randomly initialized with 3 classes: the weights have 10 classes" in caplog.text
    assert model.head.kernel.shape == (96, 3)
    assert 0.01 < float(model.head.kernel[...].std()) < 0.03
    np.testing.assert_array_equal(model.norm.scale[...], state["norm.weight"])
    same = deit_jax.load_model(path, num_classes=3)
    np.testing.assert_array_equal(model.head.kernel[...], same.head.kernel[...])
    other = deit_jax.load_model(path, num_classes=3, rngs=1)
    assert np.abs(model.head.kernel[...] - other.head.kernel[...]).max() > 0


def test_distilled_into_plain_and_back(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        plain = deit_jax.load_model(path, name=PLAIN)
    assert "dropped dist_token, head_dist and pos_embed's second position" in caplog.text
    np.testing.assert_array_equal(plain.pos_embed[...], np.delete(state["pos_embed"], 1, axis=1))
    np.testing.assert_array_equal(plain.head.kernel[...], state["head.weight"].T)
    weights = load_weights(path)
    before = jax.tree.map(np.copy, weights.tree)
    params, _, _ = fit_named(weights, PLAIN)
    jax.tree.map(np.testing.assert_array_equal, weights.tree, before)
    weights.architecture.config["distilled"] = False
    weights.tree["params"] = params
    params, _, notes = fit_named(weights, SMALL)
    new = "randomly initialized dist_token, head_dist and pos_embed's second position"
    assert notes == [f"{new}: the weights have none"]
    with pytest.raises(UserError, match="initialized dist_token, head_dist .*: give the model these weights are of"):
        fit_named(weights, SMALL, allow_new_parameters=False)  # else a teacher would have a random head
    np.testing.assert_array_equal(params["pos_embed"][:, [0, *range(2, 18)]], plain.pos_embed[...])
    assert 0.01 < params["pos_embed"][:, 1].std() < 0.03
    assert params["head_dist"]["kernel"].shape == (96, 10)
    assert params["dist_token"].std() > 0.01


def test_evaluation_initializes_no_parameters(small):
    weights = load_weights(small[0])
    with pytest.raises(UserError, match="head and head_dist randomly initialized with 3 classes"):
        fit_named(weights, SMALL, num_classes=3, allow_new_parameters=False)
    assert fit_named(weights, SMALL, img_size=32, allow_new_parameters=False)[2]  # resizing draws nothing new


def test_a_model_of_another_kind_or_size_is_refused(small):
    weights = load_weights(small[0])
    with pytest.raises(UserError, match="distilled ViT.*the model is a RegNet"):
        fit_named(weights, "regnety_cifar")
    with pytest.raises(UserError, match=r"blocks.attn.qkv.kernel has shape \(4, 96, 288\), not \(9, 192, 576\)"):
        fit_named(weights, "deit_cifar_distilled_patch4_32")


def test_a_file_without_heads_asks_for_classes(small):
    path, state = small
    for content in (state, {key: value for key, value in state.items() if not key.startswith("head")}):
        save_file(content, path)
        model, images = deit_jax.load_model(path, num_classes=0), seeded.images(2, 16)
        tokens = model.features(images)[:, :2]  # what the heads would see
        np.testing.assert_allclose(model(images), tokens.mean(1), atol=1e-6)
    with pytest.raises(UserError, match="no classification head: give num_classes="):
        deit_jax.load_model(path)
    assert deit_jax.load_model(path, num_classes=4).head_dist.kernel.shape == (96, 4)


# ---- outputs in the order of the data's classes, by name, never by position in silence


@pytest.fixture
def weights(tmp_path):
    save_file(state_of(SMALL, num_classes=4), tmp_path / f"{SMALL}.safetensors")
    weights = load_weights(tmp_path / f"{SMALL}.safetensors")
    weights.class_names = list(NAMES)
    return weights


def heads(params):
    return {name: (params[name]["kernel"], params[name]["bias"]) for name in ("head", "head_dist")}


def test_the_same_classes_in_another_order(weights):
    order = [2, 0, 3, 1]
    params, _, notes = fit_named(weights, SMALL, class_names=[NAMES[i] for i in order])
    assert notes == ["outputs put into the order of the data's classes (class names)"]
    own = heads(weights.tree["params"])
    for name, (kernel, bias) in heads(params).items():
        np.testing.assert_array_equal(kernel, own[name][0][:, order])
        np.testing.assert_array_equal(bias, own[name][1][order])
    np.testing.assert_array_equal(params["pos_embed"], weights.tree["params"]["pos_embed"])
    params, _, notes = fit_named(weights, SMALL, class_names=NAMES)
    assert notes == []
    np.testing.assert_array_equal(params["head"]["kernel"], own["head"][0])


def test_as_many_classes_of_other_names_get_new_heads(weights):
    others = ["ant", "bee", "cat", "elk"]
    params, _, notes = fit_named(weights, SMALL, class_names=others)
    assert "randomly initialized with 4 classes: the weights have as many, but other ones" in notes[0]
    assert "'elk'" in notes[0]
    assert params["head"]["kernel"].std() < 0.03
    with pytest.raises(UserError, match="does not fit: head and head_dist randomly initialized"):
        fit_named(weights, SMALL, class_names=others, allow_new_parameters=False)


def test_weights_that_do_not_name_their_classes(weights):
    weights.class_names = None
    params, _, notes = fit_named(weights, SMALL, class_names=NAMES)
    assert notes == ["classes matched by position (the weights do not name their classes)"]
    np.testing.assert_array_equal(params["head"]["kernel"], weights.tree["params"]["head"]["kernel"])
    numbered, _, notes = fit_named(weights, SMALL, class_names=["3", "2", "1", "0"])
    assert notes == ["outputs put into the order of the data's classes (class numbers)"]
    np.testing.assert_array_equal(numbered["head"]["bias"], weights.tree["params"]["head"]["bias"][::-1])
