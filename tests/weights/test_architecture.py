"""Which model weights are: by a name, a configuration or their metadata; never by their shapes alone."""

import json

import numpy as np
import pytest
from helpers import SMALL, fit_named, state_of
from safetensors.numpy import save_file

import deit_jax
from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.weights import load_weights
from deit_jax.weights.architecture import registered_name

PLAIN = "deit_digits_patch4_16"


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", SMALL, "deit_cifar_patch4_32", "regnety_cifar"])
def test_a_model_is_named_by_its_file_its_folder_or_the_caller(tmp_path, name):
    state, (_, config) = state_of(name, num_classes=7), models.find(name)
    (tmp_path / f"{name}-best").mkdir()
    for path in (
        tmp_path / f"{name}-0123abcd.safetensors",
        tmp_path / f"{name}-best/x.safetensors",
        tmp_path / "x.safetensors",
    ):
        save_file(state, path)
        weights = load_weights(path, name="" if name in str(path) else name)
        assert (weights.name, weights.num_classes) == (name, 7)
        assert {k: weights.architecture.config[k] for k in config} == config


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "regnety_002", "tf_efficientnet_b0"])
def test_weights_without_a_name_list_models_of_their_family(tmp_path, name):
    save_file(state_of(name, num_classes=7), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors does not say which model it is: name it, by name=") as error:
        load_weights(tmp_path / "x.safetensors")
    listed = str(error.value).split("a model like ")[1].split(" and ")[0].split(", ")
    assert {models.find(other)[0] for other in listed} == {models.find(name)[0]}


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        ("deit_small_patch16_224-cd65a155.pth", "deit_small_patch16_224"),
        ("facebook/deit-base-distilled-patch16-384", "deit_base_distilled_patch16_384"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224"),
        ("efficientnet_b0_ra-3dd342df.safetensors", "efficientnet_b0"),
        ("tf_efficientnet_b0_ns-c0e6a31c.safetensors", "tf_efficientnet_b0"),
        ("tf_efficientnet_b0.ap_in1k.safetensors", "tf_efficientnet_b0"),
        ("deit_small_patch16_2240", ""),
        ("small.safetensors", ""),
    ],
)
def test_registered_names_in_file_names(hint, name):
    assert registered_name(hint) == name


def test_a_published_model_without_its_last_block_does_not_pass_for_a_shallower_one(tmp_path):
    state = state_of("deit_tiny_patch16_224", num_classes=3)
    cut = {k: v for k, v in state.items() if not k.startswith("blocks.11.")}
    save_file(cut, tmp_path / "deit_tiny_patch16_224.safetensors")
    with pytest.raises(UserError, match=r"missing blocks\.11\.attn\.proj\.bias, .* and 4 more$"):
        load_weights(tmp_path / "deit_tiny_patch16_224.safetensors")


def test_unknown_layouts(tmp_path):
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="unknown layout .it holds encoder.weight"):
        load_weights(tmp_path / "x.safetensors")
    state = {k.replace("s2.b1.", "s2.b9."): v for k, v in state_of("regnety_cifar").items()}
    save_file(state, tmp_path / "regnety_cifar.safetensors")
    with pytest.raises(UserError, match="missing s2.b1.*; unknown s2.b9"):
        load_weights(tmp_path / "regnety_cifar.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50"}')
    with pytest.raises(UserError, match="model 'resnet50' is not known"):
        load_weights(tmp_path / "x.safetensors")
    (tmp_path / "z.h5").write_bytes(b"x")
    with pytest.raises(UserError, match="z.h5 is not a weight file"):
        load_weights(tmp_path / "z.h5")


def test_a_grid_of_a_square_count_keeps_its_shape(tmp_path):
    """2 x 8 patches are as many as 4 x 4."""
    state = state_of(PLAIN, num_classes=10, img_size=(8, 32))
    save_file(state, tmp_path / "wide.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": PLAIN, "model_args": {"img_size": [8, 32]}}))
    params, _, notes = fit_named(load_weights(tmp_path / "wide.safetensors"), PLAIN, img_size=(8, 32))
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    assert notes == []


def test_a_grid_of_which_nothing_says_its_sides(tmp_path):
    """13 x 15 patches and a class token are as many positions as 14 x 14 patches without one."""
    state = state_of("deit_tiny_patch16_224", num_classes=3, img_size=(208, 240))
    save_file(state, tmp_path / "deit_tiny_patch16_224.safetensors")
    for size in (None, 224, 240):
        with pytest.raises(UserError, match=r"grid of its 195 patch positions is not known: give img_size=\(height"):
            deit_jax.load_model(tmp_path / "deit_tiny_patch16_224.safetensors", img_size=size)
    model = deit_jax.load_model(tmp_path / "deit_tiny_patch16_224.safetensors", img_size=(208, 240))
    np.testing.assert_array_equal(model.pos_embed[...], state["pos_embed"])
