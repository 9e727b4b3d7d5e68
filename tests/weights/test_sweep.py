"""Odd weight files of each kind: the right weights, or one line; never, unsaid, others."""

import json
from collections.abc import Callable

import jax
import numpy as np
import pytest
from helpers import state_of
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import load_weights

PLAIN = "deit_pico_patch4_12"
State = dict[str, np.ndarray]

# each takes tensors by name and a config.json, and changes them
RIGHT: dict[str, Callable[[State, dict], State]] = {
    "as it is": lambda s, c: s,
    "prefix": lambda s, c: {f"module.{k}": v for k, v in s.items()},
    "two prefixes": lambda s, c: {f"_orig_mod.model.{k}": v for k, v in s.items()},
    "other order": lambda s, c: dict(reversed(s.items())),
    "float64": lambda s, c: {k: v.astype(np.float64) for k, v in s.items()},
    "a counter of averages": lambda s, c: s | {"n_averaged": np.array(3)},
    "heads as they are": lambda s, c: c.update(num_attention_heads=2) or s,
    "timm's architecture": lambda s, c: c.update(architecture=PLAIN) or s,
    "names of the classes": lambda s, c: c.update(label_names=["a", "b", "c"]) or s,
    "unknown settings": lambda s, c: c.update(whatever={"x": [1, None]}) or s,
}
WRONG: dict[str, Callable[[State, dict], State]] = {
    "a tensor is missing": lambda s, c: {k: v for k, v in s.items() if not k.endswith("norm1.bias")},
    "a block is missing": lambda s, c: {k: v for k, v in s.items() if "blocks.1." not in k},
    "an unknown tensor": lambda s, c: s | {"rel_pos_bias": np.zeros(3, np.float32)},
    "a transposed kernel": lambda s, c: {k: v.T if k.endswith("fc1.weight") else v for k, v in s.items()},
    "not finite": lambda s, c: {k: v * np.float32(np.nan) if k.endswith("cls_token") else v for k, v in s.items()},
    "infinite": lambda s, c: {k: v / np.float32(0) if k.endswith("pos_embed") else v for k, v in s.items()},
    "a head of two sizes": lambda s, c: {k: v[:2] if k.endswith("head.bias") else v for k, v in s.items()},
    "twice": lambda s, c: s | {f"backbone.{k}": v for k, v in s.items()},
    "half of a distilled model": lambda s, c: s | {"dist_token": np.zeros((1, 1, 64), np.float32)},
    "another activation": lambda s, c: c.update(hidden_act="relu") or s,
    "a size that the positions do not have": lambda s, c: c.update(image_size=224) or s,
    "heads that do not divide": lambda s, c: c.update(num_attention_heads=5) or s,
    "a mean of two channels": lambda s, c: c.update(pretrained_cfg={"mean": [0.5, 0.5]}) or s,
    "a std of zero": lambda s, c: c.update(pretrained_cfg={"std": [0.0, 0.5, 0.5]}) or s,
    "an epsilon that is text": lambda s, c: c.update(layer_norm_eps="small") or s,
}
KINDS = RIGHT | WRONG


@pytest.fixture(scope="module")
def state():
    return state_of(PLAIN, num_classes=3)


@pytest.fixture(scope="module")
def right(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("right") / f"{PLAIN}.safetensors"
    save_file(state, path)
    return load_weights(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(tmp_path, state, right, kind):
    config: dict = {}
    with np.errstate(all="ignore"):
        tensors = KINDS[kind](dict(state), config)
    path = tmp_path / f"{PLAIN}.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    if kind in RIGHT:
        found = load_weights(path)
        jax.tree.map(np.testing.assert_array_equal, found.tree, right.tree)
        described = lambda weights: (weights.name, weights.mean, weights.architecture.config)
        assert described(found) == described(right)
    else:
        with pytest.raises(UserError) as error:
            load_weights(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600
