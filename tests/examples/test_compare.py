"""The comparison tool finds the layer where a port goes wrong."""

import sys

import jax
import numpy as np
import pytest
import seeded
from flax import nnx
from helpers import SMALL, import_timm, state_of
from safetensors.numpy import save_file

import deit_jax
from deit_jax.errors import UserError
from examples import compare


@pytest.fixture(scope="module")
def small():
    return deit_jax.create_model(SMALL, num_classes=10)


def test_activations_are_those_of_the_model(small):
    images = seeded.images(2, 16)
    seen = compare.activations(small, images)
    inside = small.inspect(images)
    for i in range(small.depth):
        np.testing.assert_allclose(seen[f"blocks.{i}"], inside["blocks"][i], atol=1e-5)
    cls, dist = small.heads(images)
    np.testing.assert_allclose(seen["head"], cls, atol=1e-5)
    np.testing.assert_allclose(seen["head_dist"], dist, atol=1e-5)
    assert list(seen)[:3] == ["patch_embed", "blocks.0.norm1", "blocks.0.attn.qkv"]


def test_layers_are_watched_only_within(small):
    called = [type(layer).__call__ for _, layer in nnx.iter_modules(small)]
    compare.activations(small, seeded.images(1, 16))
    assert [type(layer).__call__ for _, layer in nnx.iter_modules(small)] == called


def test_the_first_layer_that_differs_is_named(small):
    graphdef, state = nnx.split(small)
    pure = jax.tree.map(np.array, nnx.to_pure_dict(state))
    pure["blocks"]["mlp"]["fc1"]["bias"][2] += 1.0
    broken = nnx.merge(graphdef, pure)
    images = seeded.images(2, 16)
    ours, theirs = compare.activations(broken, images), compare.activations(small, images)
    text = compare.report(ours, theirs)
    assert text.startswith("blocks.2.mlp.fc1 differs by ")
    assert "blocks.2.norm2 last" in text
    assert "\n" not in text
    assert compare.report(theirs, theirs).startswith(f"{len(theirs)} layers agree; the largest difference is 0.0e+00")
    assert len(compare.report(ours, theirs, every=True).splitlines()) == len(theirs) + 1


def test_shapes_and_values_that_are_no_numbers_differ():
    a = {"x": np.ones((2, 3)), "y": np.ones(4), "ours": np.ones(1)}
    assert "y has shape (4,) here, (5,) there" in compare.report(a, {"x": np.ones(6), "y": np.ones(5)})
    assert compare.differences(a, {"x": np.full((2, 3), np.nan)}) == {"x": float("inf")}
    assert "no layer has the same name" in compare.report(a, {"z": np.ones(1)})


def test_command_line(tmp_path, capsys):
    state = state_of(SMALL, num_classes=10)
    save_file(state, tmp_path / f"{SMALL}-a.safetensors")
    state["blocks.3.norm2.bias"] = state["blocks.3.norm2.bias"] + 1
    save_file(state, tmp_path / f"{SMALL}-b.safetensors")
    compare.main([str(tmp_path / f"{SMALL}-a.safetensors"), str(tmp_path / f"{SMALL}-b.safetensors")])
    assert capsys.readouterr().out.startswith("blocks.3.norm2 differs by")
    images = seeded.images(1, 16)
    seen = compare.activations(deit_jax.load_model(tmp_path / f"{SMALL}-a.safetensors"), images)
    np.savez(tmp_path / "seen.npz", images=images, **seen)
    compare.main([str(tmp_path / f"{SMALL}-a.safetensors"), f"--npz={tmp_path / 'seen.npz'}"])
    assert "layers agree" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        compare.main([str(tmp_path / f"{SMALL}-a.safetensors")])
    assert "error: nothing to compare with" in capsys.readouterr().err
    np.savez(tmp_path / "no.npz", **seen)
    with pytest.raises(SystemExit, match="2"):
        compare.main([str(tmp_path / f"{SMALL}-a.safetensors"), f"--npz={tmp_path / 'no.npz'}"])
    assert "lacks the array 'images'" in capsys.readouterr().err


def test_timm_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as where it is not installed
    with pytest.raises(UserError, match="--timm needs torch and timm"):
        compare.timm_activations("x", "deit_tiny_patch16_224", 10, seeded.images(1, 224))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_002"])
def test_every_layer_agrees_with_timm(tmp_path, name):
    import_timm()
    save_file(seeded.checkpoint(name), tmp_path / f"{name}.safetensors")
    images = seeded.images(1, 224)
    ours = compare.activations(deit_jax.load_model(tmp_path / f"{name}.safetensors"), images)
    theirs = compare.timm_activations(tmp_path / f"{name}.safetensors", name, 1000, images)
    errors = compare.differences(ours, theirs)
    assert len(errors) > 90
    assert max(errors.values()) < 2e-5
