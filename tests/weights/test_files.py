"""Files of every form: wrappers and prefixes, shards, PyTorch's pickles, and damage that is told in a line."""

import argparse
import json
import pathlib
import pickle
import tracemalloc
import zipfile

import huggingface_hub
import jax
import numpy as np
import pytest
from helpers import SMALL, state_of
from safetensors.numpy import save_file

from deit_jax.errors import UserError
from deit_jax.weights import files, hub, load_weights
from deit_jax.weights.pickles import MAGIC, check_pickle, choose, model_name


@pytest.fixture
def small(tmp_path):
    """A small distilled model's file, and its state dict."""
    state = state_of(SMALL, num_classes=10)
    save_file(state, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors", state


def same(path, other, **options) -> None:
    jax.tree.map(np.testing.assert_array_equal, load_weights(path, **options).tree, load_weights(other).tree)


# ---- prefixes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.", "timm_model."])
def test_prefixes_of_wrappers(tmp_path, small, prefix):
    save_file({prefix + key: value for key, value in small[1].items()}, tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors", small[0])


def test_a_backbone_with_its_head_outside(tmp_path, small):
    state = {key if key.startswith("head") else f"backbone.{key}": value for key, value in small[1].items()}
    save_file(state, tmp_path / "x.safetensors")
    same(tmp_path / "x.safetensors", small[0])


def test_two_models_under_two_prefixes(tmp_path, small):
    save_file(small[1] | {f"module.{key}": value for key, value in small[1].items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds .* twice, as .* and as module.*: keep one of the two models"):
        load_weights(tmp_path / "x.safetensors")


# ---- shards


@pytest.fixture
def sharded(tmp_path, small):
    folder = tmp_path / "sharded"
    folder.mkdir()
    keys = list(small[1])
    parts = {"a.safetensors": keys[: len(keys) // 2], "b.safetensors": keys[len(keys) // 2 :]}
    for name, names in parts.items():
        save_file({key: small[1][key] for key in names}, folder / name)
    placed = {key: name for name, names in parts.items() for key in names}
    write_index(folder, placed)
    return folder, placed


def write_index(folder, placed) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_shards(small, sharded):
    same(sharded[0], small[0])
    same(sharded[0] / "model.safetensors.index.json", small[0])


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        (5, "is not an index of shards"),
        ({}, "is not an index of shards"),
        ({"x": 3}, "is not an index of shards"),
        ({"x": "../a.safetensors"}, "is not an index of shards"),
        ({"x": "/etc/passwd"}, "is not an index of shards"),
        ({"x": "a.safetensors"}, "places x in a.safetensors, which does not hold it"),
        ({"x": "c.safetensors"}, "names c.safetensors, which is not there"),
        ({str(i): f"{i}.safetensors" for i in range(2000)}, "names 2000 files: 1000 at most"),
    ],
)
def test_indexes_that_cannot_be(sharded, placed, message):
    write_index(sharded[0], placed)
    with pytest.raises(UserError, match=message):
        load_weights(sharded[0])


def test_which_file_of_a_folder(tmp_path, small):
    folder = tmp_path / "runs"
    folder.mkdir()
    assert files.weight_file(folder) is None
    (folder / "best.safetensors").symlink_to(small[0])
    same(folder, small[0])
    (folder / "last.pth").write_bytes(b"")
    with pytest.raises(UserError, match="holds several weight files: name one of best.safetensors, last.pth"):
        load_weights(folder)


# ---- damage


def test_numbers_that_are_not_finite_are_named(tmp_path, small):
    state = dict(small[1])
    state["blocks.2.norm1.weight"] = np.full(96, np.nan, np.float32)
    state["head.bias"] = np.full(10, np.inf, np.float32)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not finite, in blocks.2.norm1.weight, head.bias: the training diverged"):
        load_weights(tmp_path / "x.safetensors")


def test_a_block_far_away(tmp_path, small):
    save_file(small[1] | {"blocks.99999999.norm1.weight": np.zeros(96, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"has blocks.99999999 but not blocks.4"):
        load_weights(tmp_path / "x.safetensors")


def test_many_unknown_tensors_are_counted(tmp_path, small):
    save_file(small[1] | {f"x{i:04}": np.zeros(1, np.float32) for i in range(3000)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="unknown x0000, .* and 2988 more$"):
        load_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b"[1]",
    ],
)
def test_headers_that_cannot_be(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    with pytest.raises(UserError, match="x.safetensors is not a readable .safetensors file"):
        load_weights(tmp_path / "x.safetensors")


def test_a_type_that_is_not_supported(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    with pytest.raises(UserError, match="a of type F8_E4M3 is not supported: save it as float32"):
        load_weights(tmp_path / "x.safetensors")


# ---- PyTorch's pickles, as far as they are read without PyTorch

LEGACY = MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02" + b"(" * 1000, "neither a zip archive nor PyTorch's older form"),
        (LEGACY + b"\x80\x02" + b"(" * 2_000_000, "too long or nested too deeply"),
        (LEGACY + pickle.dumps(list(range(400_000)), 2), "too long or nested too deeply"),
    ],
)
def test_pickles_that_no_model_has(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check_pickle(tmp_path / "x.pth")


def test_archives_that_no_model_has(tmp_path):
    for name, kind in (("stored.pth", zipfile.ZIP_STORED), ("packed.pth", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", kind) as archive:
            archive.writestr("archive/data.pkl", b"(" * (33 << 20))
    tracemalloc.start()  # neither is unpacked
    try:
        with pytest.raises(ValueError, match="a list of tensors of 33 MiB"):
            check_pickle(tmp_path / "stored.pth")
        with pytest.raises(ValueError, match="its entries are compressed"):
            check_pickle(tmp_path / "packed.pth")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


class Tensor:
    """What `choose` takes for a tensor."""

    def untyped_storage(self):
        pass


def test_which_of_a_files_weights():
    trained, averaged = {"a": Tensor()}, {"b": Tensor()}
    both = {"model": trained, "model_ema": averaged, "optimizer": {"state": {}}, "epoch": 3}
    assert choose(both, "params", "x")[0] == trained
    assert "averaged ones too ('model_ema', --weights=ema)" in choose(both, "params", "x")[1][0]
    assert choose(both, "ema", "x") == (averaged, [])
    assert choose({"ema_state_dict": averaged}, "params", "x") == (
        averaged,
        ["averaged weights ('ema_state_dict'): the file has no others"],
    )
    assert choose({"model": {"state_dict": trained}}, "params", "x") == (trained, [])
    assert choose({"model": {"depth": 12}, "state_dict": trained}, "params", "x") == (trained, [])
    assert choose(trained, "params", "x") == (trained, [])
    assert choose([1], "params", "x") == ({}, [])
    endless = {"a": Tensor()}
    endless["model"] = endless
    assert choose(endless, "params", "x")[0] == endless
    with pytest.raises(UserError, match="holds no averaged weights: leave --weights=ema out"):
        choose({"model": trained}, "ema", "x")
    with pytest.raises(UserError, match="holds weights under 'model' and 'state_dict': save one of them alone"):
        choose({"model": trained, "state_dict": averaged}, "params", "x")


def test_the_name_that_training_scripts_save():
    assert model_name({"args": argparse.Namespace(model=SMALL)}) == SMALL
    assert model_name({"arch": SMALL, "args": None}) == SMALL
    assert model_name({"arch": 3}) == model_name([]) == ""


def test_averaged_weights_of_a_file_that_has_none(small):
    with pytest.raises(UserError, match="holds one set of weights: leave --weights=ema out"):
        load_weights(small[0], weights="ema")
    with pytest.raises(UserError, match="weights 'avg' are not known: use params or ema"):
        load_weights(small[0], weights="avg")


@pytest.mark.parametrize("name", ["checkpoint.pth", "x.pth.tar", "x.bin", "x.ckpt"])
def test_files_of_training_scripts(tmp_path, small, name):
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {f"module.{key}": torch.from_numpy(value) for key, value in small[1].items()}
    average = {key: value + 1 for key, value in state.items()}
    settings = argparse.Namespace(model=SMALL, output_dir=pathlib.Path("out"), score=np.float64(81.2), seeds=[0, 1])
    content = {"state_dict": state, "model_ema": average, "args": settings, "epoch": 3, "metric": np.float64(81.2)}
    for zipped in (True, False):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        same(tmp_path / name, small[0])
        weights = load_weights(tmp_path / name, weights="ema")
        assert weights.name == SMALL
        assert "name" not in weights.assumed
        np.testing.assert_array_equal(weights.tree["params"]["pos_embed"], small[1]["pos_embed"] + 1)


def test_tensors_that_are_larger_than_their_memory(tmp_path, small):
    torch = pytest.importorskip("torch", reason="needs torch")
    state = {key: torch.from_numpy(value) for key, value in small[1].items()}
    torch.save(state | {"cls_token": torch.zeros(1).expand(1, 1, 10**12)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="cls_token is not a plain array"):
        load_weights(tmp_path / "x.pth")


# ---- the hub


@pytest.mark.parametrize(
    ("source", "right"),
    [("timm/deit_tiny_patch16_224.fb_in1k", True), ("runs/x.pth.tar", False), ("a/b.safetensors", False), ("a", False)],
)
def test_hub_names(source, right):
    assert hub.is_hub_name(source) == right


def test_a_mistyped_name_without_network_is_told_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []

    def unreachable(url, timeout):
        asked.append(timeout)
        raise ConnectionError("no network")

    download, local = huggingface_hub.hf_hub_download, []

    def recorded(*names, local_files_only):
        local.append(local_files_only)
        return download(*names, local_files_only=local_files_only)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", recorded)
    with pytest.raises(UserError, match="owner/mistyped is not in the cache and the hub cannot be reached"):
        load_weights("owner/mistyped")
    assert asked == [3.0]  # once; then only the cache
    assert local
    assert all(local)
