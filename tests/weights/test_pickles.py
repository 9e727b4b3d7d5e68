"""PyTorch's files: wrappers, training scripts' settings, and code that is never run."""

import argparse
import os
import pathlib
import sys

import jax
import numpy as np
import pytest
from helpers import SMALL, same_weights

from deit_jax.errors import UserError
from deit_jax.weights import load_weights
from deit_jax.weights.weight_files import choose_weights, model_name


class Tensor:
    """What `choose_weights` takes for a tensor."""

    def untyped_storage(self):
        pass


def test_which_of_a_files_weights():
    trained, averaged = {"a": Tensor()}, {"b": Tensor()}
    both = {"model": trained, "model_ema": averaged, "optimizer": {"state": {}}, "epoch": 3}
    assert choose_weights(both, "params", "x")[0] == trained
    assert "averaged ones too ('model_ema', --weights=ema)" in choose_weights(both, "params", "x")[1][0]
    assert choose_weights(both, "ema", "x") == (averaged, [])
    with pytest.raises(UserError, match="holds averaged weights .'ema_state_dict'. and no others: read them by"):
        choose_weights({"ema_state_dict": averaged}, "params", "x")
    assert choose_weights({"model": {"depth": 12}, "state_dict": trained}, "params", "x") == (trained, [])
    assert choose_weights(trained, "params", "x") == (trained, [])
    assert choose_weights([1], "params", "x") == ({}, [])
    with pytest.raises(UserError, match="holds no averaged weights: leave --weights=ema out"):
        choose_weights({"model": trained}, "ema", "x")
    with pytest.raises(UserError, match="holds weights under 'model' and 'state_dict': save one of them alone"):
        choose_weights({"model": trained, "state_dict": averaged}, "params", "x")


def test_the_name_that_training_scripts_save():
    assert model_name({"args": argparse.Namespace(model=SMALL)}) == SMALL
    assert model_name({"arch": SMALL, "args": None}) == SMALL
    assert model_name({"arch": 3}) == model_name([]) == ""


@pytest.mark.parametrize("name", ["checkpoint.pth", "x.pth.tar", "x.bin", "x.ckpt"])
def test_files_of_training_scripts(tmp_path, small, name):
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {f"module.{key}": torch.from_numpy(value) for key, value in small[1].items()}
    average = {key: value + 1 for key, value in state.items()}
    settings = argparse.Namespace(model=SMALL, output_dir=pathlib.Path("out"), score=np.float64(81.2), seeds=[0, 1])
    content = {"state_dict": state, "model_ema": average, "args": settings, "epoch": 3, "metric": np.float64(81.2)}
    for zipped in (True, False):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        same_weights(tmp_path / name, small[0])
        weights = load_weights(tmp_path / name, weights="ema")
        assert weights.name == SMALL
        np.testing.assert_array_equal(weights.tree["params"]["pos_embed"], small[1]["pos_embed"] + 1)


def test_pth_without_torch_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="needs PyTorch to be read: pip install torch"):
        load_weights(tmp_path / "x.pth")


class Command:
    """A pickle that runs a command where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_files(tmp_path, small, zipped):
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {key: torch.from_numpy(value) for key, value in small[1].items()}
    path = tmp_path / "it.pth"
    torch.save({"model": state, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    jax.tree.map(np.testing.assert_array_equal, load_weights(path, name=SMALL).tree, load_weights(small[0]).tree)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a readable .pth file"):
        load_weights(path)
    torch.save({"model": Command(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code: it is refused"):
        load_weights(path)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="unknown layout"):
        load_weights(path)
