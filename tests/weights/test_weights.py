"""Weights read, recognised, fitted into other models; and every way a file, folder or name can be bad."""

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import threading
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
import seeded
from helpers import SMALL, state_of
from safetensors.numpy import save_file

import deit_jax
from deit_jax import models
from deit_jax.convert import DISTILLED, convert, tensors
from deit_jax.errors import UserError
from deit_jax.weights import fit_weights, load_weights
from deit_jax.weights.files import open_file
from deit_jax.weights.names import HuggingFace, Timm, entries


@pytest.fixture
def small(tmp_path):
    """A small distilled model's file, and its state dict."""
    state = state_of(SMALL, num_classes=10)
    save_file(state, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors", state


# ---- position embedding


def test_pos_embed_is_resized_as_pytorch_does():
    pos = seeded.tensor("pos_embed", (1, 198, 192))
    golden = np.load(seeded.GOLDEN / "pos_embed.npz")["24"]  # its first 32 of 192 dimensions, without the prefix
    resized = np.asarray(deit_jax.resize_pos_embed(pos, (24, 24), prefix_tokens=2))
    assert resized.shape == (1, 578, 192)
    np.testing.assert_array_equal(resized[:, :2], pos[:, :2])
    np.testing.assert_allclose(resized[:, 2:, :32], golden, atol=1e-5 * np.abs(golden).max())


def test_pos_embed_resized_by_hand():
    """A single bright patch, doubled: the cubic kernel with A = -0.75 at distances 1/4, 3/4, 5/4 and 7/4."""
    pos = np.zeros((1, 25, 1), np.float32)
    pos[0, 12] = 1
    row = np.asarray(deit_jax.resize_pos_embed(pos, (10, 5), prefix_tokens=0)).reshape(10, 5)[:, 2]
    near, far, beyond, furthest = 0.87890625, 0.26171875, -0.10546875, -0.03515625
    half = [0, furthest, beyond, far, near]
    np.testing.assert_allclose(row, [*half, *half[::-1]], atol=1e-7)


def test_pos_embed_that_is_constant_stays_so():
    resized = deit_jax.resize_pos_embed(np.full((1, 26, 3), 2.5, np.float32), (3, 17), prefix_tokens=1)
    np.testing.assert_allclose(resized, np.full((1, 52, 3), 2.5), atol=1e-6)


def test_pos_embed_of_a_grid_that_is_no_square():
    pos = seeded.tensor("pos_embed", (1, 1 + 6 * 4, 8))
    assert deit_jax.resize_pos_embed(pos, (3, 5), old_grid=(6, 4)).shape == (1, 16, 8)
    there = deit_jax.resize_pos_embed(pos, (6, 4), old_grid=(6, 4))
    np.testing.assert_array_equal(there, pos)
    with pytest.raises(UserError, match=r"24 positions behind 1 prefix tokens, which are not a square"):
        deit_jax.resize_pos_embed(pos, (3, 5))
    with pytest.raises(UserError, match="not 5x5"):
        deit_jax.resize_pos_embed(pos, (3, 5), old_grid=(5, 5))


@pytest.mark.parametrize("grid", [(24, 24), (7, 7), (10, 31)])
def test_pos_embed_equals_torch(grid):
    torch = pytest.importorskip("torch", reason="needs torch: the golden value carries the proof without it")
    pos = seeded.tensor("pos_embed", (1, 197, 12))
    square = torch.from_numpy(pos[:, 1:].reshape(1, 14, 14, 12)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(square, size=grid, mode="bicubic", align_corners=False)
    ours = deit_jax.resize_pos_embed(pos, grid, prefix_tokens=1)[:, 1:]
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).reshape(1, -1, 12), atol=2e-6)


# ---- recognised


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_small_distilled_patch16_384",
        SMALL,
        "deit_cifar_patch4_32",
        "regnety_002",
        "regnety_cifar",
    ],
)
def test_a_model_is_recognised_by_its_tensors(tmp_path, name):
    save_file(state_of(name, num_classes=7), tmp_path / "x.safetensors")
    weights = load_weights(tmp_path / "x.safetensors")
    _, config = models.find(name)
    assert weights.name == name
    assert weights.num_classes == 7
    assert {k: weights.architecture.config[k] for k in config} == config


def test_a_file_says_which_of_two_names_alike(tmp_path):
    save_file(state_of("vit_tiny_patch16_224"), tmp_path / "vit_tiny_patch16_224.augreg.safetensors")
    assert load_weights(tmp_path / "vit_tiny_patch16_224.augreg.safetensors").name == "vit_tiny_patch16_224"


def test_sizes_no_published_model_has(tmp_path):
    odd = {"embed_dim": 128, "depth": 2, "patch_size": 8, "num_heads": 2, "mlp_ratio": 3.0}
    save_file(state_of("deit_tiny_patch16_224", img_size=(16, 40), num_classes=3, **odd), tmp_path / "x.safetensors")
    weights = load_weights(tmp_path / "x.safetensors")
    assert weights.name == ""
    assert weights.architecture.describe() == "a ViT of width 128, depth 2, patch 8"
    with pytest.raises(UserError, match="10 patch positions, which are not a square"):
        deit_jax.load_model(tmp_path / "x.safetensors", img_size=32)
    with pytest.raises(UserError, match=r"10 patch positions, which are not a square: give img_size=\(height, width\)"):
        deit_jax.load_model(tmp_path / "x.safetensors")
    model = deit_jax.load_model(tmp_path / "x.safetensors", img_size=(16, 40))
    assert model(np.zeros((1, 16, 40, 3), np.float32)).shape == (1, 3)


@pytest.mark.parametrize("dtype", [np.float16, jax.numpy.bfloat16])
def test_half_precision_files_are_read_as_float32(tmp_path, dtype):
    state = {key: value.astype(dtype) for key, value in state_of(SMALL).items()}
    save_file(state, tmp_path / "x.safetensors")
    leaf = load_weights(tmp_path / "x.safetensors").tree["params"]["head"]["kernel"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, state["head.weight"].T.astype(np.float32))


@pytest.mark.parametrize("modules", [False, True], ids=["hub files", "transformers 5"])
@pytest.mark.parametrize("prefix", ["deit.", ""])
def test_hugging_face_names_hold_the_same_model(tmp_path, small, modules, prefix):
    naming = HuggingFace(prefix, "cls_classifier", modules)
    tree = load_weights(small[0]).tree
    save_file(tensors(tree, naming), tmp_path / "hf.safetensors")
    assert any(
        ("layers.0.attention.q_proj" if modules else "attention.attention.query") in k for k in tensors(tree, naming)
    )
    again = load_weights(tmp_path / "hf.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.tree, tree)
    gone = "0.attention.k_proj.bias" if modules else "0.attention.attention.key.bias"
    content = {key: value for key, value in tensors(tree, naming).items() if not key.endswith(gone)}
    save_file(content, tmp_path / "hf.safetensors")
    with pytest.raises(UserError, match=rf"missing \S*{gone}$"):
        load_weights(tmp_path / "hf.safetensors")


# ---- fitted


def test_another_image_size_resizes_the_positions(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        model = deit_jax.load_model(path, img_size=(24, 32))
    assert "pos_embed resized from 4x4 to 6x8 patches" in caplog.text
    expected = deit_jax.resize_pos_embed(state["pos_embed"], (6, 8), prefix_tokens=2)
    np.testing.assert_array_equal(model.pos_embed[...], expected)
    assert model(np.zeros((1, 24, 32, 3), np.float32)).shape == (1, 10)


def test_other_classes_make_new_heads(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        model = deit_jax.load_model(path, num_classes=3)
    assert "head and head_dist newly made with 3 classes: the weights have 10 classes" in caplog.text
    assert model.head.kernel.shape == (96, 3)
    assert 0.01 < float(model.head.kernel[...].std()) < 0.03
    np.testing.assert_array_equal(model.norm.scale[...], state["norm.weight"])
    same = deit_jax.load_model(path, num_classes=3)
    np.testing.assert_array_equal(model.head.kernel[...], same.head.kernel[...])
    other = deit_jax.load_model(path, num_classes=3, rngs=1)
    assert np.abs(model.head.kernel[...] - other.head.kernel[...]).max() > 0


def test_distilled_into_plain_and_back(small, caplog):
    path, state = small
    with caplog.at_level(logging.WARNING, "deit_jax"):
        plain = deit_jax.load_model(path, name="deit_digits_patch4_16")
    assert "dropped dist_token, head_dist and pos_embed's second position" in caplog.text
    np.testing.assert_array_equal(plain.pos_embed[...], np.delete(state["pos_embed"], 1, axis=1))
    np.testing.assert_array_equal(plain.head.kernel[...], state["head.weight"].T)
    weights = load_weights(path)
    params, _, _ = fit_weights(weights, "deit_digits_patch4_16")
    weights.architecture.config["distilled"] = False
    weights.tree["params"] = params
    params, _, notes = fit_weights(weights, SMALL)
    assert notes == ["newly made dist_token, head_dist and pos_embed's second position: the weights have none"]
    np.testing.assert_array_equal(params["pos_embed"][:, [0, *range(2, 18)]], plain.pos_embed[...])
    assert 0.01 < params["pos_embed"][:, 1].std() < 0.03
    assert params["head_dist"]["kernel"].shape == (96, 10)
    assert params["dist_token"].std() > 0.01


def test_fitting_leaves_the_weights_as_they_were(small):
    weights = load_weights(small[0])
    before = jax.tree.map(np.copy, weights.tree)
    fit_weights(weights, "deit_digits_patch4_16", num_classes=3, img_size=24)
    jax.tree.map(np.testing.assert_array_equal, weights.tree, before)


def test_no_parts_are_made_for_evaluation(small):
    weights = load_weights(small[0])
    with pytest.raises(UserError, match="head and head_dist newly made with 3 classes"):
        fit_weights(weights, SMALL, num_classes=3, new_parts=False)
    assert fit_weights(weights, SMALL, img_size=32, new_parts=False)[2]  # resizing draws nothing new


def test_a_model_of_another_kind_or_size_is_refused(small):
    weights = load_weights(small[0])
    with pytest.raises(UserError, match="distilled ViT.*the model is a RegNet"):
        fit_weights(weights, "regnety_cifar")
    with pytest.raises(UserError, match=r"blocks.attn.qkv.kernel has shape \(4, 96, 288\), not \(9, 192, 576\)"):
        fit_weights(weights, "deit_cifar_distilled_patch4_32")


def test_a_file_without_heads_asks_for_classes(tmp_path, small):
    _, state = small
    save_file({k: v for k, v in state.items() if not k.startswith("head")}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="no classification head: give num_classes="):
        deit_jax.load_model(tmp_path / "bare.safetensors")
    assert deit_jax.load_model(tmp_path / "bare.safetensors", num_classes=4).head_dist.kernel.shape == (96, 4)


# ---- bad input


def test_truncated_and_corrupt_files(tmp_path, small):
    path, _ = small
    content = path.read_bytes()
    for name, broken in {
        "short": content[: len(content) // 2],
        "shorter": content[:100],
        "empty": b"",
        "text": b"<html>404</html>" * 100,
        "longer": content + b"00",
        "header": content.replace(b'"dtype":"F32"', b'"dtype":"F99"', 1),
        "offsets": content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    }.items():
        bad = tmp_path / f"{name}.safetensors"
        bad.write_bytes(broken)
        with pytest.raises(UserError, match="not a readable .safetensors file .*: download it again") as error:
            load_weights(bad)
        assert str(bad) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_published_model_without_its_last_block_does_not_pass_for_a_shallower_one(tmp_path):
    state = state_of("deit_tiny_patch16_224", num_classes=3)
    cut = {k: v for k, v in state.items() if not k.startswith("blocks.11.")}
    save_file(cut, tmp_path / "deit_tiny_patch16_224.safetensors")
    with pytest.raises(UserError, match=r"lacks blocks 11\.\.11 of 12"):
        load_weights(tmp_path / "deit_tiny_patch16_224.safetensors")
    save_file(cut, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 12, "pretrained_cfg": null}')
    with pytest.raises(UserError, match=r"lacks blocks 11\.\.11 of 12"):
        load_weights(tmp_path)
    (tmp_path / "config.json").write_text('{"image_size": "big"}')
    with pytest.raises(UserError, match="image_size 'big': it must be a number of pixels"):
        load_weights(tmp_path)


def test_missing_extra_and_wrongly_shaped_keys_are_each_named(tmp_path, small):
    bad = dict(small[1])
    del bad["cls_token"], bad["blocks.2.norm1.bias"]
    bad["blocks.0.ls1.gamma"] = bad["extra"] = np.zeros(3, np.float32)
    bad["blocks.1.attn.qkv.weight"] = np.zeros((96, 288), np.float32)
    save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "bad.safetensors")
    message = str(error.value)
    assert "missing blocks.2.norm1.bias, cls_token;" in message
    assert "unknown blocks.0.ls1.gamma, extra" in message
    assert "blocks.1.attn.qkv.weight has shape (96, 288), not (288, 96)" in message


@pytest.mark.parametrize(
    "key", ["head.weight", "head.bias", "norm.weight", "patch_embed.proj.weight", "pos_embed", "dist_token"]
)
def test_any_one_missing_key_is_named(tmp_path, small, key):
    state = {k: v for k, v in small[1].items() if k != key}
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=f"missing {key}"):
        deit_jax.load_model(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("key", ["head.weight", "head.bias"])
def test_a_head_that_disagrees_with_itself(tmp_path, key):
    state = state_of("deit_digits_patch4_16")
    state[key] = state[key][:-1]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=rf"{key} has shape \(999"):
        load_weights(tmp_path / "bad.safetensors")


def test_a_batch_statistic_that_is_missing_is_named(tmp_path):
    state = {k: v for k, v in state_of("regnety_cifar").items() if k != "s1.b1.conv1.bn.running_var"}
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"missing s1.b1.conv1.bn.running_var"):
        load_weights(tmp_path / "bad.safetensors")


def test_unknown_layouts(tmp_path):
    save_file({"encoder.weight": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="unknown layout .it holds encoder.weight"):
        load_weights(tmp_path / "x.safetensors")
    state = {k.replace("s2.b1.", "s2.b9."): v for k, v in state_of("regnety_cifar").items()}
    save_file(state, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="unknown layout: a RegNet of stages"):
        load_weights(tmp_path / "y.safetensors")
    (tmp_path / "z.h5").write_bytes(b"x")
    with pytest.raises(UserError, match="z.h5 is not a weight file"):
        load_weights(tmp_path / "z.h5")


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors does not exist"):
        load_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_weights(tmp_path)


def test_a_broken_orbax_folder(tmp_path, small):
    folder = convert(small[0], tmp_path / "orbax")
    for file in (folder / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="not a readable Orbax folder|checkpoint .* is damaged") as error:
        load_weights(folder)
    assert "\n" not in str(error.value)


# ---- PyTorch files


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
    jax.tree.map(np.testing.assert_array_equal, load_weights(path).tree, load_weights(small[0]).tree)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a readable PyTorch file"):
        load_weights(path)
    torch.save({"model": Command(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="could run code: it is refused"):
        load_weights(path)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="unknown layout"):
        load_weights(path)


# ---- the hub, played by a server of our own


class Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send: bool):
        name, _, file = self.path.lstrip("/").partition("/resolve/main/")
        content = self.files.get(f"{name}/{file}")
        known = any(key.startswith(f"{name}/") for key in self.files)
        self.send_response(200 if content is not None else 404 if known else 401)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{abs(hash(content))}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if send and content is not None:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


CLIENT = """
import sys, time
import deit_jax
time.sleep = lambda seconds: None  # the hub's client waits 23 s between its tries
for name in sys.argv[1:]:
    try:
        weights = deit_jax.load_weights(name)
        print("read", weights.name, weights.num_classes, weights.mean[0], (weights.class_names or ["-"])[0])
    except deit_jax.UserError as error:
        print("error", error)
"""


def ask(home, endpoint: str, *names: str, offline: bool = False) -> list[str]:
    environment = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run([sys.executable, "-c", CLIENT, *names], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hub_names(tmp_path, small):
    path, _ = small
    weights = load_weights(path)
    timm_config = {
        "architecture": SMALL,
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 16, 16]},
    }
    save_file(tensors(weights.tree, DISTILLED), tmp_path / "hf.safetensors")
    hf_config = {"image_size": 16, "id2label": {str(i): f"digit {i}" for i in range(10)}}
    Hub.files = {
        "timm/small.test/model.safetensors": path.read_bytes(),
        "timm/small.test/config.json": json.dumps(timm_config).encode(),
        "facebook/small-distilled/model.safetensors": (tmp_path / "hf.safetensors").read_bytes(),
        "facebook/small-distilled/config.json": json.dumps(hf_config).encode(),
        "owner/no-weights/config.json": b"{}",
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    names = ["timm/small.test", "facebook/small-distilled", "owner/nothing", "owner/no-weights", "owner/a b"]
    said = ask(tmp_path / "home", address, *names)
    server.shutdown()
    server.server_close()
    assert said[0] == f"read {SMALL} 10 0.5 -"
    assert said[1] == f"read {SMALL} 10 0.485 digit 0"
    assert said[2].startswith("error owner/nothing does not exist, neither as a file or folder here nor on the hub")
    assert said[3].startswith("error owner/no-weights holds neither model.safetensors nor pytorch_model.bin")
    assert said[4].startswith("error owner/a b does not exist")
    assert len(said) == len(names)
    # no network: what was read is in the cache, the rest is told
    for offline in (True, False):
        cached, missing = ask(tmp_path / "home", address, "timm/small.test", "timm/other", offline=offline)
        assert cached == said[0]
        assert missing.startswith("error timm/other is not in the cache and the hub cannot be reached")


# ---- cost


def test_each_tensor_is_read_once_and_memory_stays_within_twice_the_size(tmp_path, monkeypatch):
    """What loading costs (its seconds: benchmarks/load_weights.py)."""
    _, params, batch_stats = models.abstract(models.constructor("deit_tiny_distilled_patch16_224"))
    shapes = {e.key: e.shape for e in entries({"params": params, "batch_stats": batch_stats}, Timm())}
    path = tmp_path / "tiny.safetensors"
    save_file({key: np.full(shape, 0.5, np.float32) for key, shape in shapes.items()}, path)
    reads = []

    def counting(*arguments):
        tensors = open_file(*arguments)
        return dataclasses.replace(tensors, read=lambda key: reads.append(key) or tensors.read(key))

    monkeypatch.setattr("deit_jax.weights.load.open_file", counting)
    tracemalloc.start()
    try:
        loaded = load_weights(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(x.nbytes for x in jax.tree.leaves(loaded.tree))
    assert size == sum(4 * math.prod(shape) for shape in shapes.values())
    assert sorted(reads) == sorted(shapes)
    assert size < peak < 1.5 * size
