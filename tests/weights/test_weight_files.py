"""Weight files of every form: prefixes, folders, half precision, and damage that is reported in one line."""

import jax
import numpy as np
import pytest
from helpers import SMALL, same_weights, state_of
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import load_weights, weight_files


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.", "timm_model."])
def test_prefixes_of_wrappers(tmp_path, small, prefix):
    for outside in ((), "head"):  # a backbone may have its head outside
        state = {k if outside and k.startswith(outside) else prefix + k: value for k, value in small[1].items()}
        save_file(state, tmp_path / f"{SMALL}.safetensors")
        same_weights(tmp_path / f"{SMALL}.safetensors", small[0])


def test_which_file_of_a_folder(tmp_path, small):
    folder = tmp_path / "runs"
    folder.mkdir()
    assert weight_files.weight_file(folder) is None
    (folder / f"{SMALL}-best.safetensors").symlink_to(small[0])
    same_weights(folder, small[0])
    (folder / "last.pth").write_bytes(b"")
    with pytest.raises(UserError, match="holds several weight files: name one of deit_.*-best.safetensors, last.pth"):
        load_weights(folder)


def test_numbers_that_are_not_finite_are_named(tmp_path, small):
    state = dict(small[1])
    state["blocks.2.norm1.weight"] = np.full(96, np.nan, np.float32)
    state["head.bias"] = np.full(10, np.inf, np.float32)
    save_file(state, tmp_path / f"{SMALL}.safetensors")
    with pytest.raises(UserError, match="not finite, in blocks.2.norm1.weight, head.bias: the training diverged"):
        load_weights(tmp_path / f"{SMALL}.safetensors")


def test_averaged_weights_of_a_file_that_has_none(small):
    with pytest.raises(UserError, match="holds one set of weights: leave --weights=ema out"):
        load_weights(small[0], weights="ema")
    with pytest.raises(UserError, match="weights 'avg' are not known: use params or ema"):
        load_weights(small[0], weights="avg")


@pytest.mark.parametrize("dtype", [np.float16, jax.numpy.bfloat16])
def test_half_precision_files_are_read_as_float32(tmp_path, dtype):
    state = {key: value.astype(dtype) for key, value in state_of(SMALL).items()}
    save_file(state, tmp_path / f"{SMALL}.safetensors")
    leaf = load_weights(tmp_path / f"{SMALL}.safetensors").tree["params"]["head"]["kernel"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, state["head.weight"].T.astype(np.float32))


def test_truncated_and_corrupt_files(tmp_path, small):
    path, _ = small
    content = path.read_bytes()
    for name, broken in {
        "short": content[: len(content) // 2],
        "empty": b"",
        "nested": (1_000_000).to_bytes(8, "little") + b"[" * 1_000_000 + b"0000",
        "text": b"<html>404</html>" * 100,
        "header": content.replace(b'"dtype":"F32"', b'"dtype":"F99"', 1),
        "offsets": content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    }.items():
        bad = tmp_path / f"{name}.safetensors"
        bad.write_bytes(broken)
        with pytest.raises(UserError, match="not a readable .safetensors file .*: download it again") as error:
            load_weights(bad)
        assert str(bad) in str(error.value)
    for name in ("x.txt", "config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            load_weights(tmp_path / name)
