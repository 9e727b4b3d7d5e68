"""The comparison tool finds the layer where a port goes wrong."""

import jax
import numpy as np
import pytest
import seeded
from flax import nnx
from helpers import SMALL, import_timm, state_of
from safetensors.numpy import save_file

import deit_jax
from examples import compare


@pytest.fixture(scope="module")
def small():
    return deit_jax.create_model(SMALL, num_classes=10)


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
    assert compare.report(theirs, theirs).startswith(f"{len(theirs)} layers agree; the largest difference is 0.0e+00")
    assert len(compare.report(ours, theirs, every=True).splitlines()) == len(theirs) + 1


def test_command_line(tmp_path, capsys):
    state = state_of(SMALL, num_classes=10)
    a, b, seen, lacking = (
        str(tmp_path / f"{SMALL}-{end}") for end in ("a.safetensors", "b.safetensors", "1.npz", "2.npz")
    )
    save_file(state, a)
    state["blocks.3.norm2.bias"] = state["blocks.3.norm2.bias"] + 1
    save_file(state, b)
    compare.main([a, b])
    assert capsys.readouterr().out.startswith("blocks.3.norm2 differs by")
    images = seeded.images(1, 16)
    layers = compare.activations(deit_jax.load_model(a), images)
    np.savez(seen, images=images, **layers)
    compare.main([a, f"--npz={seen}"])
    assert "layers agree" in capsys.readouterr().out
    np.savez(lacking, **layers)
    for arguments, message in (
        ([a], "error: nothing to compare with"),
        ([a, f"--npz={lacking}"], "the array 'images'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare.main(arguments)
        assert message in capsys.readouterr().err


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
