"""Exported files against the model, in the programs that will run them."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ANIMALS, TINY, TINY_PLAIN, save_weights

from deit_jax.__main__ import main
from deit_jax.errors import UserError
from deit_jax.export import export_command
from deit_jax.export.export_command import compare_exports, write_export
from deit_jax.export.exportable import Form, load_exportable

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("flatbuffers", reason="needs the extra export")

ALL = {"heads": "both", "layout": "nhwc", "pixels": "uint8", "attention": True}
SMALL_NET = {"width_coefficient": 0.25, "depth_coefficient": 0.5, "img_size": 24}
# name, arguments that differ from it, form, opset
CASES = {
    "deit": (TINY, {}, {}, 17),
    "deit-23": (TINY, {}, {"heads": "both"}, 23),
    "deit-all": (TINY, {"img_size": (8, 12)}, ALL, 17),
    "deit-half": (TINY, {}, {"dtype": "fp16", "attention": True}, 20),
    "one-head": (TINY, {"two_heads": False}, {}, 17),
    "vit": (TINY_PLAIN, {"norm_eps": 1e-3}, {"dtype": "bf16"}, 18),
    "deit3": (TINY_PLAIN, {"init_values": 1.0, "no_embed_class": True, "reg_tokens": 4}, {"attention": True}, 17),
    "regnet": ("regnety_digits", {}, {"layout": "nhwc"}, 17),
    "regnet-half": ("regnety_digits", {"img_size": (12, 17)}, {"dtype": "bf16", "pixels": "uint8"}, 17),
    "efficientnet": ("efficientnet_b0", SMALL_NET, {}, 17),
    "efficientnet-lite": ("tf_efficientnet_lite0", SMALL_NET, {"dtype": "bf16"}, 17),
    "efficientnet-tf": ("tf_efficientnet_b0", SMALL_NET | {"img_size": (23, 30)}, {"dtype": "fp16"}, 17),
}


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A function that writes the weights of a model with three classes, and returns the file."""
    monkeypatch.setattr(export_command, "TIMED", 0.0)
    return functools.partial(save_weights, tmp_path / "model.safetensors")


SLOW = ("efficientnet", "efficientnet-tf", "regnet-half", "deit-23", "deit-half")


@pytest.mark.parametrize(
    ("name", "arguments", "form", "opset"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (name in SLOW), id=name) for name, case in CASES.items()],
)
def test_onnx_runtime_agrees_with_the_model(tmp_path, weights, name, arguments, form, opset):
    exportable = load_exportable(weights(name, **arguments), Form(**form))
    write_export(exportable, tmp_path / "model.onnx", opset=opset)
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version == opset
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1 and max(tensor.dims) > 9}
    half = {"fp32": onnx.TensorProto.FLOAT, "bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}
    assert half[form.get("dtype", "fp32")] in stored
    if opset == 17:
        assert model.ir_version == 8


@pytest.mark.parametrize(
    ("case", "beside"),
    [
        ("deit-all", False),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("deit-half", "regnet")),
    ],
)
def test_stablehlo_agrees_with_the_model(tmp_path, weights, case, beside):
    name, arguments, form, _ = CASES[case]
    exportable = load_exportable(weights(name, **arguments), Form(**form))
    write_export(exportable, tmp_path / "model.stablehlo", beside=beside)
    size = (tmp_path / "model.stablehlo").stat().st_size
    assert (tmp_path / "model.stablehlo.safetensors").exists() == beside
    assert beside == (size < 150_000), size


ALONE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("deit_jax", "flax"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import jax, numpy as np
from safetensors.numpy import load_file
for name, weights in (("inside", []), ("beside", [load_file("beside.stablehlo.safetensors")])):
    exported = jax.export.deserialize(bytearray(open(name + ".stablehlo", "rb").read()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.save(name, exported.call(*weights, np.load("images.npy"))["logits"])
"""


@pytest.mark.slow
def test_stablehlo_loads_where_neither_deit_jax_nor_flax_can_be_imported(tmp_path, weights):
    exportable = load_exportable(weights(TINY), Form(dtype="bf16"))
    write_export(exportable, tmp_path / "inside.stablehlo")
    write_export(exportable, tmp_path / "beside.stablehlo", beside=True)
    images = export_command.pictures(exportable, 5)
    np.save(tmp_path / "images", images)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", "import jax.export" + ALONE], cwd=tmp_path, env=environment, check=True)
    for name in ("inside", "beside"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), exportable.reference(images)["logits"], atol=1e-5)


def test_the_command_describes_the_file_in_timms_words(tmp_path, weights, capsys):
    source = weights(TINY)
    main(["export", source, str(tmp_path / "model.onnx"), "--input=uint8", "--heads=both"])
    said = capsys.readouterr().out
    assert "model.onnx (" in said
    assert "largest difference" in said
    assert "batch 32" in said
    about = json.loads((tmp_path / "model.onnx.json").read_text())
    assert about["pretrained_cfg"] == {
        "input_size": [3, 16, 16],
        "fixed_input_size": True,
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
    }
    assert (about["label_names"], about["num_classes"], about["made_from"]) == (ANIMALS, 3, source)
    assert about["file"]["outputs"] == ["probabilities", "cls_probabilities", "dist_probabilities"]


def test_large_weights_lie_in_a_file_beside(tmp_path, weights, monkeypatch):
    from deit_jax.export import onnx_file

    monkeypatch.setattr(onnx_file, "LARGEST", 10_000)
    write_export(load_exportable(weights(TINY), Form()), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 100_000 < (tmp_path / "model.onnx.data").stat().st_size
    onnx.checker.check_model(str(tmp_path / "model.onnx"))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_differs_is_not_kept(tmp_path, weights):
    exportable = load_exportable(weights(TINY_PLAIN), Form())

    def logits(change):
        return lambda images: {"logits": change(exportable.reference(images)["logits"])}

    assert compare_exports(exportable, logits(lambda x: x), "model.onnx") == 0
    with pytest.raises(UserError, match=r"model\.onnx differs from the model by 3.0e-04 of the largest of 'logits'"):
        compare_exports(exportable, logits(lambda x: x + 3e-4 * np.abs(x).max()), "model.onnx")
    with pytest.raises(UserError, match="and in the classes"):
        compare_exports(exportable, logits(lambda x: -x), "model.onnx")


@pytest.mark.parametrize(
    ("name", "file", "flags", "message"),
    [
        (TINY_PLAIN, "model.onnx", ["--heads=both"], "one head"),
        ("regnety_digits", "model.onnx", ["--attention"], "no attention"),
        (TINY, "model.onnx", ["--opset=16"], "--opset: invalid choice: 16"),
        (TINY, "model.tflite", [], "give NAME.onnx or NAME.stablehlo"),
        (TINY, "no/model.onnx", [], "folder that exists"),
    ],
)
def test_what_a_model_does_not_have_and_bad_destinations(tmp_path, weights, capsys, name, file, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["export", weights(name), str(tmp_path / file), *flags])
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_an_unknown_part_is_named(tmp_path, weights):
    from flax import nnx

    from deit_jax.export.graph import Graph
    from deit_jax.export.onnx_file import check_complete

    model = load_exportable(weights(TINY_PLAIN), Form()).model()
    graph = Graph(np.dtype(np.float32))
    graph.read = {id(node) for path, node in nnx.iter_graph(model) if "norm2" not in path}
    with pytest.raises(UserError, match=r"blocks\.norm2"):
        check_complete(graph, model, "x")
