"""timm's and Hugging Face's configuration files."""

import json

import numpy as np
import pytest
from helpers import SMALL, fit_named, state_of
from PIL import Image
from safetensors.numpy import save_file

import deit_jax
from deit_jax import convert
from deit_jax.augment import normalize
from deit_jax.errors import UserError
from deit_jax.weights import load_weights
from deit_jax.weights.library_configs import crop_of, from_processor
from deit_jax.weights.load import view_of
from deit_jax.weights.metadata import reading
from deit_jax.weights.names import HuggingFace
from deit_jax.weights.write import tensors

HALF = (0.5, 0.5, 0.5)
PLAIN = "deit_digits_patch4_16"
SIZES = {"model_type": "vit", "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "image_size": 16,
         "intermediate_size": 384, "patch_size": 4, "layer_norm_eps": 1e-6}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A function: a folder with a plain small model in Hugging Face's names and the given JSON files."""
    save_file(state_of(PLAIN, num_classes=10), tmp_path / f"{PLAIN}.safetensors")
    tree = load_weights(tmp_path / f"{PLAIN}.safetensors").tree

    def write(config=None, processor=None, naming=None):
        path = tmp_path / "hf"
        path.mkdir(exist_ok=True)
        save_file(tensors(tree, naming or HuggingFace("vit.", "classifier")), path / "model.safetensors")
        for name, content in {"config.json": config, "preprocessor_config.json": processor}.items():
            (path / name).unlink(missing_ok=True)
            if content is not None:
                (path / name).write_text(json.dumps(content))
        return path

    return write


def test_heads_and_epsilon_come_from_the_config(folder, tmp_path):
    """12 heads and eps 1e-3 change every logit; neither shows in a shape."""
    path = folder(SIZES | {"num_attention_heads": 12, "layer_norm_eps": 1e-3, "hidden_act": "gelu"})
    weights = load_weights(path)
    assert weights.architecture.config["num_heads"] == 12
    assert weights.architecture.config["norm_eps"] == 1e-3
    assert weights.name == "", "no registered model has 12 heads at this width"
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    logits = np.asarray(deit_jax.load_model(path)(images))
    other = np.asarray(deit_jax.load_model(tmp_path / f"{PLAIN}.safetensors", num_heads=12, norm_eps=1e-3)(images))
    np.testing.assert_allclose(logits, other, rtol=1e-5, atol=1e-6)
    assert np.abs(logits - np.asarray(deit_jax.load_model(tmp_path / f"{PLAIN}.safetensors")(images))).max() > 1e-2


def test_weights_of_other_heads_do_not_pass_for_a_models(folder):
    weights = load_weights(folder(SIZES | {"num_attention_heads": 12}))
    with pytest.raises(UserError, match="of num_heads=12, the model has num_heads=3: use a model of num_heads=12"):
        fit_named(weights, PLAIN)
    eps = load_weights(folder(SIZES | {"layer_norm_eps": 1e-12}))
    assert fit_named(eps, PLAIN)[2] == ["norm_eps 1e-06, the model's: the weights have 1e-12"]


def test_timms_config(folder):
    cfg = {"mean": HALF, "std": HALF, "crop_pct": 0.9, "interpolation": "bilinear", "input_size": [3, 16, 16]}
    path = folder({"architecture": PLAIN, "pretrained_cfg": cfg, "label_names": [f"c{i}" for i in range(10)]})
    weights = load_weights(path)
    assert (weights.name, weights.mean, weights.std) == (PLAIN, HALF, HALF)
    assert (weights.crop, weights.interpolation, weights.notes) == (0.9, "bilinear", [])
    assert weights.class_names == [f"c{i}" for i in range(10)]


# preprocessor_config.json, and (fit, crop, interpolation, mean, std) of the first channel
PROCESSORS = [
    ({"size": {"shortest_edge": 18}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True, "resample": 2},
     ("short_floor", 16 / 18, "bilinear", None, None)),
    ({"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3}, ("squash", 0.875, "bicubic", None, None)),
    ({"size": {"height": 224, "width": 224}, "resample": 2}, ("squash", 1.0, "bilinear", None, None)),
    ({"image_processor_type": "ViTImageProcessor"}, ("squash", 1.0, "bilinear", 0.5, 0.5)),
    ({"feature_extractor_type": "DeiTFeatureExtractor", "image_mean": [0.485] * 3},
     ("squash", 0.875, "bicubic", 0.485, 0.5)),
    ({"image_processor_type": "BitImageProcessorFast", "size": 248},
     ("short_floor", 224 / 248, "bicubic", 0.48145466, 0.26862954)),
    ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
     ("short_floor", 1.0, "bicubic", 0.48145466, 0.26862954)),
]  # fmt: skip


@pytest.mark.parametrize(("processor", "expected"), PROCESSORS)
def test_image_processors(processor, expected):
    found = from_processor(processor, "p.json")
    crop = expected[1] and pytest.approx(expected[1])
    assert (found.fit, found.crop, found.interpolation) == (expected[0], crop, expected[2])
    for values, right in ((found.mean, expected[3]), (found.std, expected[4])):
        assert (values[0] if values else None) == (right and pytest.approx(right))


REFUSED = [
    ({"image_processor_type": "ConvNextImageProcessor"}, "the processor ConvNextImageProcessor: those of ViT, DeiT"),
    ({"rescale_offset": True}, "rescale_offset True, which is not implemented"),
    ({"do_flip_channel_order": True}, "do_flip_channel_order True"),
    ({"do_resize": False}, "do_resize False, which is not implemented"),
    ({"do_rescale": False}, "do_rescale False"),
    ({"do_normalize": False}, "do_normalize False"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
    ({"do_center_crop": True, "size": 224, "crop_size": 256}, "crop_size 256 over size 224"),
    ({"size": {"longest_edge": 224}}, "an entry of another form"),
    ({"size": {"shortest_edge": 224, "longest_edge": 320}}, "an entry of another form"),
    ({"size": "x"}, "an entry of another form"),
]


@pytest.mark.parametrize(("processor", "message"), REFUSED)
def test_processors_that_make_other_pixels_are_refused(processor, message):
    with pytest.raises(UserError, match=f"p.json has {message}"), reading("p.json"):
        from_processor(processor, "p.json")


@pytest.mark.parametrize(
    ("processor", "resized"),
    [
        ({"size": {"height": 18, "width": 18}, "crop_size": 16, "do_center_crop": True, "resample": 2}, (18, 18)),
        ({"size": {"shortest_edge": 18}, "crop_size": 16, "do_center_crop": True, "resample": 2}, (21, 18)),
        ({"size": {"shortest_edge": 16}, "crop_size": 16, "do_center_crop": True, "resample": 2}, (19, 16)),
    ],
)
def test_the_pixels_are_those_of_transformers(folder, processor, resized):
    """Its steps, one after the other: resize, crop, rescale, normalize."""
    image = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    rows, columns = resized
    filters = {2: Image.Resampling.BILINEAR, 3: Image.Resampling.BICUBIC}
    pixels = np.asarray(Image.fromarray(image).resize((columns, rows), filters[processor["resample"]])).astype(float)
    top, left = (rows - 16) // 2, (columns - 16) // 2
    pixels = pixels[top : top + 16, left : left + 16] / 255
    weights = load_weights(folder(SIZES, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | processor))
    view = view_of(weights, 16)
    ours = deit_jax.eval_image(image, view.size, view.crop, view.interpolation, fit=view.fit)
    np.testing.assert_allclose(normalize(ours, view.mean, view.std), (pixels - 0.5) / 0.5, atol=1e-5)


def test_crops_give_the_processors_sizes_back():
    for inner in (16, 32, 224, 288, 384):
        for outer in range(inner, 2 * inner):
            assert int(inner / crop_of(inner, outer)) == outer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "has hidden_act 'relu': gelu is implemented"),
        ({"model_type": "beit"}, "model_type 'beit': of Hugging Face's models ViT, DeiT and DINOv2 are read"),
        ({"qkv_bias": False}, "qkv_bias False, which is not implemented"),
        ({"num_attention_heads": 7}, "embed_dim 96 is not a multiple of num_heads 7"),
        ({"num_attention_heads": "3"}, "config.json has an entry of another form than expected .*'str'"),
        ({"num_attention_heads": 0}, "an entry of another form than expected .*zero"),
        ({"num_hidden_layers": 3}, "unknown vit.encoder.layer.3."),
        ({"num_hidden_layers": 5}, "missing vit.encoder.layer.4."),
        ({"layer_norm_eps": -1}, "of another form than expected .layer_norm_eps -1"),
        ({"image_size": [16, 16, 3]}, "of another form than expected .img_size is .16, 16, 3."),
        ({"id2label": {"0": 3}}, "of another form than expected .class names that are no text"),
        ({"pretrained_cfg": "x"}, "config.json has an entry of another form than expected"),
        ({"pretrained_cfg": {"std": [1, 1, 0]}}, r"std \(1.0, 1.0, 0.0\): three numbers above 0 are needed"),
        ({"pretrained_cfg": {"std": [1, 1]}}, r"std \(1.0, 1.0\): three numbers are needed"),
        ({"pretrained_cfg": {"mean": [123.675, 116.28, 103.53]}}, "three numbers are needed, for pixels in 0..1"),
        ({"pretrained_cfg": {"interpolation": "cubic"}}, "interpolation 'cubic': use one of nearest, box"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop 0: a number in 0..1 is needed"),
        ([1], "config.json is not a readable JSON file .not an object."),
    ],
)
def test_what_cannot_be_is_one_line(folder, config, message):
    with pytest.raises(UserError, match=message):
        load_weights(folder(SIZES | config if isinstance(config, dict) else config))


@pytest.mark.parametrize(
    "config", [{"pretrained_cfg": {"input_size": [3, 48, 48]}}, {"model_args": {"img_size": 48}}, {"image_size": 48}]
)
@pytest.mark.parametrize("name", ["regnety_digits", "efficientnet_b0"])
def test_a_convnets_size_is_the_files(tmp_path, name, config):
    save_file(state_of(name, num_classes=2), tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_weights(tmp_path).architecture.img_size == 48
    assert deit_jax.load_model(tmp_path).img_size == 48
    assert deit_jax.load_model(tmp_path, img_size=64).img_size == 64


@pytest.mark.parametrize("where", ["model_args", "pretrained_cfg", ""])
@pytest.mark.parametrize(("key", "value"), [("global_pool", "avg"), ("act_layer", "relu"), ("qk_norm", True)])
def test_arguments_that_are_not_implemented_are_refused_by_name(tmp_path, where, key, value):
    save_file(state_of(PLAIN, num_classes=10), tmp_path / f"{PLAIN}.safetensors")
    entry = {key: value}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": PLAIN, **({where: entry} if where else entry)}))
    with pytest.raises(UserError, match=f"config.json has {key} {value!r}, which is not implemented for {PLAIN}"):
        load_weights(tmp_path)


def test_model_args_are_the_models(tmp_path):
    """Each is in the model, or refused by name; a model of fewer blocks is no damaged file."""
    arguments = {"depth": 2, "num_heads": 6, "mlp_ratio": 2.0, "patch_size": 2, "img_size": (8, 12), "embed_dim": 48}
    save_file(state_of(PLAIN, num_classes=10, **arguments), tmp_path / "model.safetensors")
    neutral = {"drop_path_rate": 0.1, "weight_init": "skip", "global_pool": "token", "fc_norm": None}
    config = {"architecture": PLAIN, "model_args": arguments | neutral}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = deit_jax.load_model(tmp_path)
    assert {key: getattr(model, key) for key in arguments if key != "mlp_ratio"}.items() <= arguments.items()
    config["model_args"]["init_values"] = 1e-5  # LayerScale, whose scales the file lacks
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing blocks\.0\.ls1\.gamma"):
        load_weights(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "\xff", "{"])
def test_json_that_is_not_json(folder, content):
    path = folder()
    (path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="config.json is not a readable JSON file") as error:
        load_weights(path)
    assert len(str(error.value)) < 400


def test_class_names_of_another_count_are_not_used(folder):
    weights = load_weights(folder(SIZES | {"id2label": {str(i): f"c{i}" for i in range(9)}}))
    assert weights.class_names is None
    assert "its 9 class names are not used: the head has 10 outputs" in " ".join(weights.notes)


def test_one_head_on_the_class_token(tmp_path):
    """Hugging Face's DeiTForImageClassification: a distillation token without a head of its own."""
    save_file(state_of(SMALL, num_classes=10), tmp_path / f"{SMALL}.safetensors")
    tree = load_weights(tmp_path / f"{SMALL}.safetensors").tree
    one = {"params": {k: v for k, v in tree["params"].items() if k != "head_dist"}, "batch_stats": {}}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(json.dumps(SIZES | {"model_type": "deit"}))
    save_file(tensors(one, HuggingFace("deit.", "classifier")), tmp_path / "hf/model.safetensors")
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    model = deit_jax.load_model(tmp_path / "hf")
    cls, dist = model.heads(images)
    assert dist is None
    two = deit_jax.load_model(tmp_path / f"{SMALL}.safetensors").heads(images)[0]
    np.testing.assert_allclose(cls, two, rtol=1e-5, atol=1e-6)
    weights = load_weights(tmp_path / "hf")
    with pytest.raises(UserError, match="randomly initialized head_dist"):
        fit_named(weights, SMALL, allow_new_parameters=False)
    convert.convert(tmp_path / "hf", tmp_path / "again", to="huggingface")
    assert json.loads((tmp_path / "again/config.json").read_text())["architectures"] == ["DeiTForImageClassification"]
    assert load_weights(tmp_path / "again").architecture.config["two_heads"] is False
