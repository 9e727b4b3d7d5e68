"""Weights from a hub, played by a server of our own, and from its cache."""

import json
import time

import pytest
from helpers import SMALL
from huggingface_hub import constants
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import hub as hub_names
from deit_jax.weights import load_weights
from deit_jax.weights.write import DISTILLED, tensors


@pytest.mark.parametrize(
    ("source", "right"),
    [("timm/deit_tiny_patch16_224.fb_in1k", True), ("runs/x.pth.tar", False), ("a/b.safetensors", False), ("a", False)],
)
def test_hub_names(source, right):
    assert hub_names.is_hub_name(source) == right


def test_repositories_and_the_cache(hub, tmp_path, small, monkeypatch):
    path, _ = small
    view = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 16, 16]}
    timm_config = {"architecture": SMALL, "pretrained_cfg": view}
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
    sizes |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6}
    hf_config = sizes | {"model_type": "deit", "id2label": {str(i): f"digit {i}" for i in range(10)}}
    save_file(tensors(load_weights(path).tree, DISTILLED), tmp_path / "hf.safetensors")
    files = lambda config, weights: {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    hub.repos["timm/small.test"] = files(timm_config, path.read_bytes())
    hub.repos["facebook/small-distilled"] = files(hf_config, (tmp_path / "hf.safetensors").read_bytes())
    hub.repos["owner/no-weights"] = {"config.json": b"{}"}
    for name, mean, names in (
        ("timm/small.test", 0.5, None),
        ("facebook/small-distilled", 0.485, [f"digit {i}" for i in range(10)]),
    ):
        found = load_weights(name)
        assert (found.name, found.num_classes, found.mean[0], found.class_names) == (SMALL, 10, mean, names)
    for name, message in (
        ("owner/nothing", "is no file or folder here, and the hub does not give it .*: check the spelling"),
        ("owner/no-weights", "holds neither model.safetensors nor pytorch_model.bin"),
        ("owner/a b", "does not exist: give a hub name"),
    ):
        with pytest.raises(UserError, match=f"^{name} {message}"):
            load_weights(name)
    # without the hub, what was read is in the cache
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits 23 s between its tries
    for setting, value in (("HF_HUB_OFFLINE", True), ("ENDPOINT", "http://127.0.0.1:9")):
        with monkeypatch.context() as patch:
            patch.setattr(constants, setting, value)
            assert load_weights("timm/small.test").mean[0] == 0.5
            with pytest.raises(UserError, match="^timm/other is no file or folder here, and the hub does not give it"):
                load_weights("timm/other")
