"""Weights there and back again, and other libraries reading what we wrote."""

import json

import numpy as np
import pytest
import seeded
from helpers import GOLDEN, SMALL, import_timm, photo, relative, run_jitted, state_of
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import deit_jax
from deit_jax import convert, models, predict
from deit_jax.errors import UserError
from deit_jax.evaluate.classifier import make_classifier
from deit_jax.runtime import sharding
from deit_jax.weights import load_weights
from deit_jax.weights.load import view_of
from deit_jax.weights.metadata import Metadata, to_header

LOGITS = np.load(GOLDEN / "models.npz")
DISTILLED = "deit_tiny_distilled_patch16_224"


def equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype, key
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / f"{SMALL}.safetensors"
    save_file(state_of(SMALL, num_classes=10), path)
    return path


FAMILIES = [SMALL, "deit_digits_patch4_16", "regnety_digits"]
FAMILIES += [pytest.param("tf_efficientnet_b0", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_describes_the_weights_travels_in_every_format(tmp_path, name):
    """All of it is another than the model's own: size, view, pixel statistics, classes, heads, epsilon."""
    arguments = {"img_size": 24}
    if name.startswith("deit"):
        arguments |= {"img_size": (8, 12), "num_heads": 6, "norm_eps": 1e-5}
    state = state_of(name, num_classes=5, **arguments)
    module, config = models.find(name)
    view = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop": 0.9, "fit": "squash", "interpolation": "bilinear"}
    names = [f"class {i}" for i in range(5)]

    def check(path) -> None:
        found = load_weights(path)
        known = "" if "num_heads" in arguments else name
        assert (found.name, found.num_classes, found.class_names) == (known, 5, names)
        assert found.architecture.config | config | arguments == found.architecture.config | {"num_classes": 5}
        assert {key: getattr(found, key) for key in view} == view
        model = deit_jax.load_model(path)
        assert (model.img_size, getattr(model, "norm_eps", 1e-5)) == (arguments["img_size"], 1e-5)

    metadata = Metadata(name, module.__name__, config | arguments, class_names=names, **view)
    save_file(state, tmp_path / "first.safetensors", {"format": "pt"} | to_header(metadata))
    path = tmp_path / "first.safetensors"
    for number, to in enumerate(["orbax", "timm", *["huggingface"] * name.startswith("deit"), "orbax", "timm"]):
        path = convert.convert(path, tmp_path / f"{number}{'.safetensors' if to == 'timm' else ''}", to=to)
        check(path)
    equal(load_file(path), state)
    with safe_open(path, "np") as file:
        assert set(file.metadata()) == {"format", "deit_jax"}
    torch = pytest.importorskip("torch", reason="needs torch: .pth files")
    (tmp_path / "pth").mkdir()  # a .pth file holds no metadata: config.json does, in timm's keys
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, tmp_path / "pth/model.pth")
    pretrained = {key: view[key] for key in ("mean", "std", "interpolation")} | {"crop_pct": 0.9, "crop_mode": "squash"}
    sizes = {key: value for key, value in arguments.items() if key != "norm_eps"}
    content = {"architecture": name, "model_args": sizes, "pretrained_cfg": pretrained, "label_names": names}
    (tmp_path / "pth/config.json").write_text(
        json.dumps(content | {"layer_norm_eps": 1e-5} if "norm_eps" in arguments else content)
    )
    check(tmp_path / "pth")


def test_batch_counters_are_no_weights(tmp_path):
    state = state_of("regnety_digits")
    save_file(state | {"stem.bn.num_batches_tracked": np.array(7)}, tmp_path / "regnety_digits.safetensors")
    convert.convert(tmp_path / "regnety_digits.safetensors", tmp_path / "again.safetensors")
    equal(load_file(tmp_path / "again.safetensors"), state)


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [
        (32, 0.875, ("TimmWrapperImageProcessor", {"shortest_edge": 36}, {"height": 32, "width": 32}, True)),
        (32, 1.0, ("TimmWrapperImageProcessor", {"shortest_edge": 32}, {"height": 32, "width": 32}, True)),
        ((16, 40), None, ("DeiTImageProcessor", {"height": 16, "width": 40}, {"height": 16, "width": 40}, True)),
    ],
)
def test_the_evaluation_view_travels_to_hugging_face(tmp_path, size, crop, expected):
    state = state_of(SMALL, num_classes=10, img_size=size)
    header = to_header(Metadata(SMALL, arguments={"img_size": size}, crop=crop, interpolation="bilinear"))
    save_file(state, tmp_path / "x.safetensors", header)
    folder = convert.convert(tmp_path / "x.safetensors", tmp_path / "hf", to="huggingface")
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert "deit.encoder.layer.3.attention.attention.query.weight" in set(file.keys())
    assert json.loads((folder / "config.json").read_text())["layer_norm_eps"] == 1e-6
    said = json.loads((folder / "preprocessor_config.json").read_text())
    assert tuple(said[k] for k in ("image_processor_type", "size", "crop_size", "do_center_crop")) == expected
    assert (said["resample"], said["image_mean"][0]) == (2, 0.485)
    there = load_weights(folder)
    assert there.interpolation == "bilinear"
    if crop:
        assert there.crop == crop


@pytest.mark.parametrize(
    ("destination", "to", "message"),
    [
        (f"{SMALL}.safetensors", None, "exists already"),
        ("gs://bucket/x", None, "give a new name in a local folder"),
        ("x.safetensors", "huggingface", "give a folder"),
        ("no/where/x", None, "or its folder does not"),
    ],
)
def test_bad_destinations(tmp_path, small, destination, to, message):
    before = small.read_bytes()
    with pytest.raises(UserError, match=message):
        convert.convert(small, tmp_path / destination, to=to)
    assert small.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [f"{SMALL}.safetensors"]


def test_a_regnet_has_no_hugging_face_form(tmp_path):
    save_file(state_of("regnety_digits"), tmp_path / "regnety_digits.safetensors")
    with pytest.raises(UserError, match="only a ViT or DeiT"):
        convert.convert(tmp_path / "regnety_digits.safetensors", tmp_path / "hf", to="huggingface")
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (DISTILLED, {}),
        ("deit3_small_patch16_224", {"depth": 2}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 2, "img_size": 56}),
        ("regnety_002", {}),
        ("efficientnet_b0", {}),
        ("tf_efficientnet_lite0", {}),
    ],
)
def test_timm_loads_what_we_write(tmp_path, name, arguments):
    """A file by its path, and a folder, whose config.json says the model."""
    torch, timm = import_timm()
    module, config = models.find(name)
    header = to_header(Metadata(name, module.__name__, config | arguments))
    save_file(state_of(name, num_classes=7, **arguments), tmp_path / "first.safetensors", header)
    convert.convert(tmp_path / "first.safetensors", tmp_path / "orbax")
    path = convert.convert(tmp_path / "orbax", tmp_path / "out.safetensors")
    folder = convert.convert(tmp_path / "orbax", tmp_path / "timm", to="timm")
    ours = deit_jax.load_model(path)
    images = seeded.images(2, arguments.get("img_size", 224))
    logits = run_jitted(ours, images)
    file = timm.create_model(name, checkpoint_path=str(path), num_classes=7, **arguments)
    for model in (file, timm.create_model(f"local-dir:{folder}", pretrained=True)):
        with torch.no_grad():
            theirs = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        assert relative(logits, theirs) < 1e-5
    assert load_weights(folder).architecture.describe() == load_weights(path).architecture.describe()


@pytest.mark.parametrize("name", [DISTILLED, "deit_tiny_patch16_224"])
def test_transformers_loads_what_we_write(tmp_path, name):
    torch = pytest.importorskip("torch", reason="needs torch: the golden values carry the proof without it")
    try:
        from transformers import DeiTForImageClassificationWithTeacher, ViTForImageClassification
    except Exception as error:  # transformers looks for many other libraries, and trips over broken ones
        pytest.skip(f"needs transformers: {type(error).__name__}: {error}")
    save_file(seeded.checkpoint(name), tmp_path / f"{name}.safetensors")
    folder = convert.convert(tmp_path / f"{name}.safetensors", tmp_path / "hf", to="huggingface")
    kind = DeiTForImageClassificationWithTeacher if "distilled" in name else ViTForImageClassification
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    images = seeded.images(2, 224)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    assert relative(logits, LOGITS[f"{name}/logits"]) < 1e-5
    model.save_pretrained(tmp_path / "saved")
    assert relative(deit_jax.load_model(tmp_path / "saved")(images), LOGITS[f"{name}/logits"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("size", "crop"), [(224, 0.875), (224, 0.9), (384, 1.0)])
def test_other_libraries_see_our_pixels(tmp_path, size, crop):
    """transformers' pipeline gives predict's probabilities, and timm's transform our bytes, of photos whose margins are
    even and odd."""
    _, timm = import_timm()
    transformers = pytest.importorskip("transformers")
    name, names = "vit_tiny_patch16_384", ["ant", "bee", "cat"]
    metadata = Metadata(name, arguments={"img_size": size}, crop=crop, mean=(0.4, 0.5, 0.6), class_names=names)
    metadata.std = (0.2, 0.25, 0.3)
    state = state_of(name, num_classes=3, img_size=size)
    state["head.weight"] *= 3  # probabilities far from 1/3
    save_file(state, tmp_path / f"{name}.safetensors", to_header(metadata))
    folder, config = (
        convert.convert(tmp_path / f"{name}.safetensors", tmp_path / to, to=to) for to in ("huggingface", "timm")
    )
    sizes = ((641, 480), (333, 601), (700, 250))
    photos = [photo(tmp_path / f"{width}.png", width, height) for width, height in sizes]
    mesh = sharding.make_mesh()
    classifier = make_classifier({"params": load_weights(tmp_path / f"{name}.safetensors")}, mesh)
    predicted = predict.predict_images(classifier, photos, mesh, top=3)
    classify = transformers.pipeline("image-classification", str(folder))
    for one, ours in zip(photos, predicted, strict=True):
        theirs = {found["label"]: found["score"] for found in classify(one, top_k=3)}
        assert theirs == pytest.approx(dict(ours.heads["class head"]), abs=1e-5)
    cfg = json.loads((config / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(cfg))
    for one in photos:
        pixels = transform(Image.open(one)).numpy().transpose(1, 2, 0) * metadata.std + metadata.mean
        np.testing.assert_array_equal(np.rint(255 * pixels), predict.read_view(one, classifier.view))
    assert view_of(load_weights(folder), size) == classifier.view
