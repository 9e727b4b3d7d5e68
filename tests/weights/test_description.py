"""What files say of weights beside their tensors, and what is assumed where they say nothing."""

import json
import logging

import numpy as np
import pytest
from helpers import SMALL, state_of
from safetensors import safe_open
from safetensors.numpy import save_file

import deit_jax
from deit_jax import convert
from deit_jax.config import default_config
from deit_jax.errors import UserError
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.description import Source, crop_of, from_processor, to_header
from deit_jax.weights.names import HuggingFace
from deit_jax.weights.normalization import adopt_normalization
from deit_jax.weights.recognise import registered_name
from deit_jax.weights.write import tensors

HALF = (0.5, 0.5, 0.5)
PLAIN = "deit_digits_patch4_16"


@pytest.fixture
def folder(tmp_path):
    """A function: a folder with a plain small model in Hugging Face's names and the given JSON files."""
    save_file(state_of(PLAIN, num_classes=10), tmp_path / "plain.safetensors")
    tree = load_weights(tmp_path / "plain.safetensors").tree

    def write(config=None, processor=None, naming=None):
        path = tmp_path / "hf"
        path.mkdir(exist_ok=True)
        save_file(tensors(tree, naming or HuggingFace("vit.", "classifier")), path / "model.safetensors")
        for name, content in {"config.json": config, "preprocessor_config.json": processor}.items():
            (path / name).unlink(missing_ok=True)
            if content is not None:
                (path / name).write_text(json.dumps(content))
        return path

    return write


def test_heads_and_epsilon_come_from_the_config(folder, tmp_path):
    """Issue 15, rows 1 and 16: 12 heads and eps 1e-3 change every logit; neither shows in a shape."""
    path = folder({"model_type": "vit", "num_attention_heads": 12, "layer_norm_eps": 1e-3, "hidden_act": "gelu"})
    weights = load_weights(path)
    assert weights.architecture.config["num_heads"] == 12
    assert weights.architecture.config["norm_eps"] == 1e-3
    assert weights.name == "", "no registered model has 12 heads at this width"
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    logits = np.asarray(deit_jax.load_model(path)(images))
    other = np.asarray(deit_jax.load_model(tmp_path / "plain.safetensors", num_heads=12, norm_eps=1e-3)(images))
    np.testing.assert_allclose(logits, other, rtol=1e-5, atol=1e-6)
    assert np.abs(logits - np.asarray(deit_jax.load_model(tmp_path / "plain.safetensors")(images))).max() > 1e-2
    for first, second, to in (("orbax", "hf2", "huggingface"), ("again.safetensors", "orbax2", None)):
        convert.convert(path, tmp_path / first)
        convert.convert(tmp_path / first, tmp_path / second, to=to)
        there = load_weights(tmp_path / second).architecture.config
        assert (there["num_heads"], there["norm_eps"]) == (12, 1e-3)


def test_weights_of_other_heads_do_not_pass_for_a_models(folder):
    weights = load_weights(folder({"num_attention_heads": 12}))
    with pytest.raises(UserError, match="has 12 attention heads, the model 3: use a model of 12"):
        fit_weights(weights, PLAIN)
    eps = load_weights(folder({"num_attention_heads": 3, "layer_norm_eps": 1e-12}))
    assert fit_weights(eps, PLAIN)[2] == ["norm_eps 1e-06, the model's: the weights have 1e-12"]


def test_what_nothing_says_is_noted_and_a_name_says_it(tmp_path, caplog):
    state = state_of(PLAIN, num_classes=10)
    for name in ("model.safetensors", f"{PLAIN}-0123abcd.safetensors"):
        save_file(state, tmp_path / name)
    with caplog.at_level(logging.WARNING, "deit_jax"):
        weights = load_weights(tmp_path / "model.safetensors")
    assert "attention heads 3, image size 16, pixel mean (0.485, 0.456, 0.406)" in caplog.text
    assert {"num_heads", "mean", "std", "img_size"} <= set(weights.assumed)
    named = load_weights(tmp_path / f"{PLAIN}-0123abcd.safetensors")
    assert named.assumed == ("crop", "interpolation")
    assert named.notes == []


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        ("deit_small_patch16_224-cd65a155.pth", "deit_small_patch16_224"),
        ("facebook/deit-base-distilled-patch16-384", "deit_base_distilled_patch16_384"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224"),
        ("deit_small_patch16_2240", ""),
        ("small.safetensors", ""),
    ],
)
def test_registered_names_in_file_names(hint, name):
    assert registered_name(hint) == name


def test_timms_config(folder):
    cfg = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bilinear", "input_size": [3, 16, 16]}
    path = folder({"architecture": PLAIN, "pretrained_cfg": cfg, "label_names": [f"c{i}" for i in range(10)]})
    weights = load_weights(path)
    assert (weights.name, weights.mean, weights.std) == (PLAIN, HALF, HALF)
    assert (weights.crop, weights.interpolation, weights.assumed) == (0.9, "bilinear", ())
    assert weights.class_names == [f"c{i}" for i in range(10)]


@pytest.mark.parametrize(
    ("processor", "crop", "interpolation", "squash"),
    [
        (
            {
                "size": {"shortest_edge": 18},
                "crop_size": {"height": 16, "width": 16},
                "do_center_crop": True,
                "resample": 2,
            },
            16 / 18,
            "bilinear",
            False,
        ),
        ({"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3}, 0.875, "bicubic", True),
        ({"size": {"height": 224, "width": 224}, "resample": 2}, 1.0, "bilinear", True),
        ({"do_resize": False, "size": 224}, None, None, False),
    ],
)
def test_image_processors(processor, crop, interpolation, squash):
    said = from_processor(Source(processor, "p.json"))
    assert (said.crop, said.interpolation) == (crop, interpolation)
    assert bool(said.notes) == squash


def test_crops_give_the_processors_sizes_back():
    for inner in (16, 32, 224, 288, 384):
        for outer in range(inner, 2 * inner):
            assert int(inner / crop_of(inner, outer)) == outer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "has activation 'relu': gelu is implemented for"),
        ({"model_type": "beit"}, "model_type 'beit': of Hugging Face's models ViT and DeiT are read"),
        ({"qkv_bias": False}, "qkv_bias False: True is implemented"),
        ({"num_attention_heads": 7}, "has 7 attention heads, which do not divide its width 96"),
        ({"num_attention_heads": "3"}, "num_attention_heads '3': it must be a whole number"),
        ({"num_attention_heads": 10**30}, "num_attention_heads 1000.* whole number from 1 to 4096"),
        ({"num_hidden_layers": 3}, "holds 4 blocks, its configuration says 3"),
        ({"layer_norm_eps": -1}, "layer_norm_eps -1: it must be a number above 0"),
        ({"image_size": [16, 16, 3]}, r"image_size \[16, 16, 3\]: it must be a number of pixels, or \[height, width\]"),
        ({"id2label": {"0": 3}}, "id2label .*it must be a list of names"),
        ({"pretrained_cfg": "x"}, "pretrained_cfg 'x': it must be an object"),
        ({"pretrained_cfg": {"std": [1, 1, 0]}}, "pretrained_cfg, says std .*three numbers above 0"),
        ({"pretrained_cfg": {"interpolation": "cubic"}}, "interpolation 'cubic': it must be one of nearest, box"),
        (
            {"architecture": "vit_x", "global_pool": "avg"},
            "global_pool 'avg': a ViT here predicts from its class token",
        ),
        ([1], "config.json is not a readable JSON file .not an object."),
    ],
)
def test_what_cannot_be_is_one_line(folder, config, message):
    with pytest.raises(UserError, match=message) as error:
        load_weights(folder(config))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff", "{"])
def test_json_that_is_not_json(folder, content):
    path = folder()
    (path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="config.json is not a readable JSON file") as error:
        load_weights(path)
    assert len(str(error.value)) < 400


def test_class_names_of_another_count_are_not_used(folder):
    weights = load_weights(folder({"id2label": {str(i): f"c{i}" for i in range(9)}}))
    assert weights.class_names is None
    assert any("its 9 class names are not used: the head has 10 outputs" in note for note in weights.notes)


def test_one_head_on_the_class_token(tmp_path):
    """Hugging Face's DeiTForImageClassification: a distillation token without a head of its own."""
    save_file(state_of(SMALL, num_classes=10), tmp_path / "two.safetensors")
    tree = load_weights(tmp_path / "two.safetensors").tree
    one = {"params": {k: v for k, v in tree["params"].items() if k != "head_dist"}, "batch_stats": {}}
    (tmp_path / "hf").mkdir()
    save_file(tensors(one, HuggingFace("deit.", "classifier")), tmp_path / "hf/model.safetensors")
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    model = deit_jax.load_model(tmp_path / "hf")
    cls, dist = model.heads(images)
    assert dist is None
    two = deit_jax.load_model(tmp_path / "two.safetensors").heads(images)[0]
    np.testing.assert_allclose(cls, two, rtol=1e-5, atol=1e-6)
    weights = load_weights(tmp_path / "hf")
    with pytest.raises(UserError, match="newly made head_dist"):
        fit_weights(weights, SMALL, new_parts=False)
    convert.convert(tmp_path / "hf", tmp_path / "again", to="huggingface")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["DeiTForImageClassification"]
    assert load_weights(tmp_path / "again").architecture.config["dist_head"] is False


def test_a_pooler_is_left_out(tmp_path):
    save_file(state_of(PLAIN, num_classes=10), tmp_path / "x.safetensors")
    state = tensors(load_weights(tmp_path / "x.safetensors").tree, HuggingFace("", "classifier"))
    state = {key: value for key, value in state.items() if not key.startswith("classifier")}
    state |= {"pooler.dense.weight": np.zeros((96, 96), np.float32), "pooler.dense.bias": np.zeros(96, np.float32)}
    save_file(state, tmp_path / "pooled.safetensors")
    weights = load_weights(tmp_path / "pooled.safetensors")
    assert weights.num_classes == 0
    assert weights.notes[0] == "left out the pooler: it takes no part in classification"


@pytest.mark.parametrize(("name", "prefix"), [(PLAIN, 1), (SMALL, 2)])
def test_positions_of_the_patches_alone(tmp_path, name, prefix):
    """timm's no_embed_class adds nothing to the class token: zeros there are the same model."""
    state = state_of(name, num_classes=10)
    state["pos_embed"] = state["pos_embed"][:, prefix:]
    save_file(state, tmp_path / "x.safetensors")
    weights = load_weights(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(weights.tree["params"]["pos_embed"][:, prefix:], state["pos_embed"])
    assert not weights.tree["params"]["pos_embed"][:, :prefix].any()
    assert weights.notes[0].startswith("pos_embed covers the patches alone (no_embed_class)")


def test_a_grid_of_a_square_count_keeps_its_shape(tmp_path):
    """2 x 8 patches are as many as 4 x 4."""
    state = state_of(PLAIN, num_classes=10, img_size=(8, 32))
    save_file(state, tmp_path / "wide.safetensors")
    params, _, notes = fit_weights(load_weights(tmp_path / "wide.safetensors"), PLAIN, img_size=(8, 32))
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    assert notes == ["pos_embed taken for a grid of 2x8 patches"]
    save_file(state, tmp_path / "said.safetensors", to_header({"img_size": (8, 32), "num_heads": 3}))
    for source in ("said.safetensors", "orbax", "hf", "again.safetensors"):
        if source != "said.safetensors":
            to = "huggingface" if source == "hf" else None
            convert.convert(tmp_path / "said.safetensors", tmp_path / source, to=to)
        weights = load_weights(tmp_path / source)
        assert weights.architecture.config["img_size"] == (8, 32)
        np.testing.assert_array_equal(fit_weights(weights, PLAIN, img_size=(8, 32))[0]["pos_embed"], state["pos_embed"])


def test_what_is_known_travels_in_the_header(tmp_path):
    """Issue 15, row 9: a run's mean 0 and std 1, its crop and its class names, in timm's file."""
    save_file(state_of(PLAIN, num_classes=3), tmp_path / f"{PLAIN}.safetensors")
    weights = load_weights(tmp_path / f"{PLAIN}.safetensors")
    weights.mean, weights.std, weights.class_names = (0.0,) * 3, (1.0,) * 3, ["ant", "bee", "cat"]
    weights.crop, weights.interpolation, weights.assumed = 1.0, "bilinear", ()
    convert.save_timm(weights, tmp_path / "out.safetensors")
    there = load_weights(tmp_path / "out.safetensors")
    assert (there.mean, there.std, there.crop, there.interpolation) == ((0.0,) * 3, (1.0,) * 3, 1.0, "bilinear")
    assert (there.class_names, there.name, there.assumed) == (["ant", "bee", "cat"], PLAIN, ())
    convert.convert(tmp_path / "out.safetensors", tmp_path / "orbax")
    convert.convert(tmp_path / "orbax", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    with safe_open(tmp_path / "out.safetensors", "np") as file:
        assert set(file.metadata()) == {"deit_jax"}


@pytest.mark.parametrize("header", ["[" * 100_000, "{", '{"mean": 3}', '{"class_names": {"999999999": "x"}}'])
def test_a_damaged_header_is_one_line(tmp_path, header):
    save_file(state_of(PLAIN, num_classes=3), tmp_path / "x.safetensors", {"deit_jax": header})
    with pytest.raises(UserError, match="x.safetensors: its header's 'deit_jax'"):
        load_weights(tmp_path / "x.safetensors")


def test_a_run_adopts_the_normalization_of_its_first_weights(folder, tmp_path):
    path = str(folder({"pretrained_cfg": {"mean": HALF, "std": HALF}}))
    config = default_config()
    config.init = path
    adopted = adopt_normalization(config)
    assert (adopted.augment.mean, adopted.augment.std) == (HALF, HALF)
    assert adopt_normalization(config, explicit=["augment.mean"]) is config
    config.augment.mean = (0.1, 0.2, 0.3)
    assert adopt_normalization(config) is config
    silent = default_config()
    silent.init = str(tmp_path / "plain.safetensors")
    assert adopt_normalization(silent).augment.mean == default_config().augment.mean
    begun = default_config()
    begun.init = "owner/gone"  # a run that has begun needs its first weights no more
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"augment.mean": HALF, "augment.std": HALF}))
    assert adopt_normalization(begun, tmp_path / "run").augment.mean == HALF
