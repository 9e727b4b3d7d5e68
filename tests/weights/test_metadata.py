"""Metadata beside the tensors: what our exports write, and what is assumed where there is none."""

import json
import logging

import pytest
from helpers import state_of
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import load_weights
from deit_jax.weights.load import file_metadata
from deit_jax.weights.metadata import Metadata, from_checkpoint
from deit_jax.weights.weight_files import Tensors

PLAIN = "deit_digits_patch4_16"


def test_what_nothing_says_is_noted_and_a_name_says_it(tmp_path, caplog):
    """The published weights of plain ViTs have either of two normalizations, those of DeiT ImageNet's."""
    for name in ("vit_tiny_patch16_224", "deit_tiny_patch16_224"):
        save_file(state_of(name, num_classes=10), tmp_path / f"{name}.safetensors")
    with caplog.at_level(logging.WARNING, "deit_jax"):
        load_weights(tmp_path / "vit_tiny_patch16_224.safetensors")
    assert "assumed, for nothing says otherwise: pixel mean (0.485, 0.456, 0.406)" in caplog.text
    assert load_weights(tmp_path / "deit_tiny_patch16_224.safetensors").notes == []


HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("file", "mean"),
    [
        ("tf_efficientnet_b0.ap_in1k.safetensors", HALF),
        ("tf_efficientnet_b0_ap-f262efe1.safetensors", HALF),
        ("efficientnet_b0.ra4_e3600_r224_in1k/model.safetensors", HALF),
        ("vit_tiny_patch16_224.augreg_in21k.safetensors", HALF),
        ("vit_base_patch16_224.bamboo.safetensors", (0.48145466, 0.4578275, 0.40821073)),
        ("efficientnet_b0.ra_in1k.safetensors", ()),
        ("tf_efficientnet_b0_aa-827b6e33.safetensors", ()),
        ("efficientnet_b0_apple.safetensors", ()),
    ],
)
def test_published_names_say_the_pixel_statistics(tmp_path, file, mean):
    path = tmp_path / file
    tensors = Tensors({})
    assert file_metadata(path, str(path), tensors).mean == mean
    path.parent.mkdir(exist_ok=True)
    (path.parent / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": IMAGENET, "std": HALF}}))
    assert file_metadata(path, str(path), tensors).mean == IMAGENET, "what a configuration says comes first"


def test_a_runs_checkpoint_is_viewed_as_the_run_was():
    """Its size, of every family, and its own evaluation view."""
    run = {
        "model": {"name": "regnety_digits", "img_size": 24, "num_classes": 2},
        "weights": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "class_names": ["ant", "bee"]},
        "config": {"data": {"crop": 0.9, "interpolation": "bilinear"}},
    }
    found = from_checkpoint(run, "runs/a")
    assert (found.name, found.arguments, found.class_names) == ("regnety_digits", {"img_size": 24}, ["ant", "bee"])
    assert (found.mean, found.crop, found.interpolation) == ((0.1, 0.2, 0.3), 0.9, "bilinear")
    assert Metadata(arguments={"dist_head": False}).arguments == {"two_heads": False}, "its name before 0.2"
    with pytest.raises(UserError, match="runs/a: its metadata has an entry of another form than expected"):
        from_checkpoint({"model": {"img_size": "big"}}, "runs/a")


@pytest.mark.parametrize("header", ["{", '{"mean": 3}', '{"class_names": {"999999999": "x"}}'])
def test_a_damaged_header_is_one_line(tmp_path, header):
    save_file(state_of(PLAIN, num_classes=3), tmp_path / "x.safetensors", {"deit_jax": header})
    with pytest.raises(UserError, match="x.safetensors: its header's 'deit_jax'"):
        load_weights(tmp_path / "x.safetensors")
