"""DeiT III's and DINOv2's models, switches of ViT: against timm and transformers on seeded weights, in and out."""

import json
import runpy

import jax
import numpy as np
import pytest
import seeded
from flax import nnx
from helpers import AS_USERS, fit_named, relative, run_jitted, state_of
from safetensors.numpy import load_file, save_file

import deit_jax
from deit_jax import convert, models
from deit_jax.errors import UserError
from deit_jax.models import vit
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.names import HuggingFace

GOLDEN, MADE = np.load(seeded.GOLDEN / "vit.npz"), runpy.run_path(str(seeded.GOLDEN / "vit.py"))
DEPTH, CLASSES, DINO_SIZE = MADE["DEPTH"], MADE["CLASSES"], MADE["DINO_SIZE"]
PLAIN, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Every model of these families at a depth of two."""
    monkeypatch.setattr(vit, "CONFIGS", dict(vit.CONFIGS))
    monkeypatch.setitem(models.FAMILIES, vit.ViT, vit.CONFIGS)
    for name, size in MADE["NAMES"].items():
        vit.CONFIGS[name] = vit.CONFIGS[name] | {"depth": DEPTH, "img_size": size}


@pytest.mark.parametrize("name", [name for name in MADE["NAMES"] if "large" not in name and not name.endswith("384")])
def test_logits_equal_timm_and_every_tensor_comes_back(tmp_path, name):
    state = state_of(name, num_classes=CLASSES)
    path = tmp_path / f"{name}.safetensors"
    save_file(state, path)
    weights = load_weights(path)
    assert (weights.name, weights.crop, weights.notes) == (name, 1.0, [])
    images = seeded.images(1, MADE["NAMES"][name])
    assert relative(run_jitted(deit_jax.load_model(path), images), GOLDEN[f"{name}/logits"]) < 1e-5
    again = load_file(convert.convert(path, tmp_path / "again.safetensors"))
    assert again.keys() == state.keys()
    assert all((again[key] == value).all() for key, value in state.items())
    with pytest.raises(UserError, match="LayerScale"):
        convert.convert(path, tmp_path / "folder", to="huggingface")


@pytest.mark.parametrize("modules", [False, True], ids=["hub files", "transformers 5"])
@pytest.mark.parametrize("name", [PLAIN, REGISTERS])
def test_hugging_faces_dinov2_gives_transformers_features(tmp_path, name, modules):
    kind = "dinov2" if name == PLAIN else "dinov2_with_registers"
    hub = HuggingFace("", "classifier", dinov2=True)
    shapes = {key: list(value.shape) for key, value in state_of(name, naming=hub, num_classes=1).items()}
    shapes["embeddings.position_embeddings"][1] = (DINO_SIZE // 14) ** 2 + 1
    state = seeded.checkpoint({key: shape for key, shape in shapes.items() if not key.startswith("classifier")})
    module_name = lambda key: next((key.replace(f, m) for m, f in MADE["HUB"].items() if f in key), key)
    state = {module_name(key): value for key, value in state.items()} if modules else state
    state["embeddings.mask_token"] = np.zeros((1, 384), np.float32)
    save_file(state, tmp_path / "model.safetensors")
    config = {"model_type": kind, "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": DEPTH}
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_size": DINO_SIZE, "patch_size": 14}))
    weights = load_weights(tmp_path)
    assert (weights.name, weights.num_classes) == (name, 0)
    graphdef, arrays = nnx.split(deit_jax.load_model(tmp_path, num_classes=1))
    features = lambda arrays, images: nnx.merge(graphdef, arrays).features(images)
    tokens = jax.jit(features, compiler_options=AS_USERS)(arrays, seeded.images(1, DINO_SIZE))
    assert relative(tokens, GOLDEN[kind]) < 1e-5


def test_official_names_hold_the_same_model(tmp_path):
    state = state_of("deit3_small_patch16_224", num_classes=CLASSES)
    official = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): x for key, x in state.items()}
    save_file(official, tmp_path / "deit_3_small_224_1k.safetensors")
    found = load_weights(tmp_path / "deit_3_small_224_1k.safetensors", name="deit3_small_patch16_224")
    np.testing.assert_array_equal(found.tree["params"]["blocks"]["ls2"]["gamma"][1], state["blocks.1.ls2.gamma"])

    state = state_of(REGISTERS, num_classes=CLASSES)
    first = seeded.tensor("first", (1, 1, 384))
    official = state | {"register_tokens": state["reg_token"], "mask_token": np.zeros((1, 384), np.float32)}
    official["pos_embed"] = np.concatenate([first, state["pos_embed"]], axis=1)
    del official["reg_token"]
    save_file(official, tmp_path / f"{REGISTERS}.safetensors")
    params = load_weights(tmp_path / f"{REGISTERS}.safetensors").tree["params"]
    np.testing.assert_array_equal(params["reg_token"], state["reg_token"])
    np.testing.assert_array_equal(params["pos_embed"], state["pos_embed"])
    np.testing.assert_allclose(params["cls_token"], state["cls_token"] + first)


def test_positions_at_another_size_follow_each_official_code(tmp_path):
    for name, prefix, options in ((PLAIN, 1, {"offset": 0.1}), (REGISTERS, 0, {"antialias": True})):
        state = state_of(name, num_classes=CLASSES)
        save_file(state, tmp_path / f"{name}.safetensors")
        params, _, notes = fit_named(load_weights(tmp_path / f"{name}.safetensors"), name, img_size=70)
        expected = deit_jax.resize_pos_embed(state["pos_embed"], (5, 5), prefix_tokens=prefix, **options)
        np.testing.assert_array_equal(params["pos_embed"], expected)
        assert notes == ["pos_embed resized from 8x8 to 5x5 patches"]


def test_a_distillation_token_joins_deit3_without_a_position(tmp_path):
    name = "deit3_small_patch16_224"
    save_file(state_of(name, num_classes=CLASSES), tmp_path / f"{name}.safetensors")
    weights = load_weights(tmp_path / f"{name}.safetensors")
    params, _, notes = fit_weights(weights, models.constructor(name, num_classes=CLASSES, distilled=True))
    assert notes == ["randomly initialized dist_token, head_dist: the weights have none"]
    assert params["pos_embed"].shape == (1, 196, 384)


def test_new_weights_scale_each_branch_by_the_released_value():
    params, _ = jax.jit(lambda key: models.init_arrays(models.constructor("deit3_small_patch16_224"), key))(
        jax.random.key(0)
    )
    # `init_scale` of facebookresearch/deit's models_v2.py
    np.testing.assert_array_equal(params["blocks"]["ls1"]["gamma"], np.full((DEPTH, 384), 1e-4, np.float32))
