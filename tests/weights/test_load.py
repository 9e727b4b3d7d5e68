"""Weights read from files and folders: every tensor in its place, and every way a source can be wrong."""

import tracemalloc

import jax
import numpy as np
import pytest
from helpers import SMALL, state_of
from safetensors.numpy import save_file

from deit_jax.convert import convert
from deit_jax.errors import UserError
from deit_jax.weights import load_weights
from deit_jax.weights.names import HuggingFace
from deit_jax.weights.write import tensors

PLAIN = "deit_digits_patch4_16"


@pytest.mark.parametrize("modules", [False, True], ids=["hub files", "transformers 5"])
@pytest.mark.parametrize("prefix", ["deit.", ""])
def test_hugging_face_names_hold_the_same_model(tmp_path, small, modules, prefix):
    naming = HuggingFace(prefix, "cls_classifier", modules)
    tree = load_weights(small[0]).tree
    save_file(tensors(tree, naming), tmp_path / f"{SMALL}.safetensors")
    own = "layers.0.attention.q_proj" if modules else "attention.attention.query"
    assert any(own in key for key in tensors(tree, naming))
    again = load_weights(tmp_path / f"{SMALL}.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.tree, tree)
    gone = "0.attention.k_proj.bias" if modules else "0.attention.attention.key.bias"
    content = {key: value for key, value in tensors(tree, naming).items() if not key.endswith(gone)}
    save_file(content, tmp_path / f"{SMALL}.safetensors")
    with pytest.raises(UserError, match=rf"missing \S*{gone}$"):
        load_weights(tmp_path / f"{SMALL}.safetensors")


def test_missing_extra_and_wrongly_shaped_keys_are_each_named(tmp_path, small):
    bad = dict(small[1])
    del bad["cls_token"], bad["blocks.2.norm1.bias"]
    bad["blocks.0.ls1.gamma"] = bad["extra"] = np.zeros(3, np.float32)
    bad["blocks.1.attn.qkv.weight"] = np.zeros((96, 288), np.float32)
    save_file(bad, tmp_path / f"{SMALL}.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / f"{SMALL}.safetensors")
    message = str(error.value)
    assert "missing blocks.2.norm1.bias, cls_token;" in message
    assert "unknown blocks.0.ls1.gamma, extra" in message
    assert "blocks.1.attn.qkv.weight has shape (96, 288), not (288, 96)" in message


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors does not exist"):
        load_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_home_in_paths(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="nothing does not exist: .*commas separate several"):
        load_weights("~/nothing")
    assert convert(f"~/{small[0].name}", "~/orbax") == tmp_path / "orbax"
    for name in (f"~/{small[0].name}", "~/orbax"):
        assert load_weights(name).name == SMALL


def test_memory_stays_within_twice_the_size(tmp_path):
    save_file(state_of("deit_tiny_distilled_patch16_224"), tmp_path / "deit_tiny_distilled_patch16_224.safetensors")
    tracemalloc.start()
    try:
        loaded = load_weights(tmp_path / "deit_tiny_distilled_patch16_224.safetensors")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(x.nbytes for x in jax.tree.leaves(loaded.tree))
    assert size < peak < 2.1 * size


def test_a_pooler_is_left_out(tmp_path):
    save_file(state_of(PLAIN, num_classes=10), tmp_path / f"{PLAIN}.safetensors")
    state = tensors(load_weights(tmp_path / f"{PLAIN}.safetensors").tree, HuggingFace("", "classifier"))
    state = {key: value for key, value in state.items() if not key.startswith("classifier")}
    state |= {"pooler.dense.weight": np.zeros((96, 96), np.float32), "pooler.dense.bias": np.zeros(96, np.float32)}
    save_file(state, tmp_path / "pooled.safetensors")
    weights = load_weights(tmp_path / "pooled.safetensors", name=PLAIN)
    assert weights.num_classes == 0
    assert weights.notes[0].startswith("left out pooler.dense.bias, pooler.dense.weight:")
