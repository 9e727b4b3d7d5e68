"""Accuracies against counting by hand; padding, ties and fusion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deit_jax import models
from deit_jax.augment import normalize
from deit_jax.errors import UserError
from deit_jax.evaluate.class_report import Outcomes
from deit_jax.evaluate.inference import count_correct, evaluate_sets, infer, predict, predict_classes
from deit_jax.models.vit import fuse
from deit_jax.runtime import sharding

PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="module")
def model():
    return models.create_model("deit_digits_distilled_patch4_16", num_classes=10)


@pytest.fixture(scope="module")
def parts(model):
    """(its definition, {"params", "batch_stats"})"""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    return graphdef, {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(batch_stats)}


def batches(images, labels, size=8):
    for start in range(0, len(images), size):
        part, y = images[start : start + size], labels[start : start + size]
        real = len(part)
        fill = [(0, size - real)] + [(0, 0)] * 3
        yield {
            "image": np.pad(part, fill),
            "label": np.pad(y, (0, size - real)),
            "mask": np.pad(np.ones(real, np.float32), (0, size - real)),
        }


def test_counts_are_those_by_hand(model, parts):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (21, 16, 16, 3), np.uint8)
    labels = rng.integers(0, 10, 21).astype(np.int32)
    graphdef, weights = parts
    result = evaluate_sets(graphdef, {"": weights}, batches(images, labels), mesh=sharding.make_mesh(), **PIXELS)[""]

    cls, dist = model.heads(normalize(jnp.asarray(images), *PIXELS.values()))
    for head, logits in (("cls", cls), ("dist", dist), ("fused_logits", (cls + dist) / 2)):
        order = np.argsort(-np.asarray(logits), axis=1)
        top1 = 100 * (order[:, 0] == labels).mean()
        top5 = 100 * (order[:, :5] == labels[:, None]).any(1).mean()
        loss = -np.asarray(jax.nn.log_softmax(logits))[np.arange(21), labels].mean()
        found = result["heads"][head]
        assert found["top1"] == pytest.approx(top1)
        assert found["top5"] == pytest.approx(top5)
        assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["images"] == 21

    predicted, given = predict_classes(
        graphdef, weights, batches(images, labels), mesh=sharding.make_mesh(), outputs=np.array([3, 1, 4]), **PIXELS
    )
    np.testing.assert_array_equal(given, labels)
    np.testing.assert_array_equal(predicted["dist"], np.asarray(dist)[:, [3, 1, 4]].argmax(-1))
    assert result["top1"] == result["heads"]["fused_logits"]["top1"]


def test_a_diverged_model_is_right_nowhere(parts):
    graphdef, weights = parts[0], jax.tree.map(lambda x: x * jnp.nan, parts[1])
    images, labels = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8, dtype=np.int32)
    result = evaluate_sets(graphdef, {"": weights}, batches(images, labels), mesh=sharding.make_mesh(), **PIXELS)[""]
    assert result["top1"] == result["top5"] == 0


def test_fusions():
    cls, dist = jnp.array([[0.0, 3.0, 1.0]]), jnp.array([[2.0, 0.0, 1.0]])
    np.testing.assert_allclose(fuse(cls, dist), [[1.0, 1.5, 1.0]])
    mean = (jax.nn.softmax(cls) + jax.nn.softmax(dist)) / 2
    np.testing.assert_allclose(jnp.exp(fuse(cls, dist, "probabilities")), mean, rtol=1e-6)
    np.testing.assert_array_equal(fuse(cls, None), cls)
    with pytest.raises(UserError, match="use logits or probabilities"):
        fuse(cls, dist, "sum")


def test_any_of_several_labels_is_right():
    guess = np.arange(6)
    other = (guess + 1) % 10
    labels = np.stack([other, guess, np.full(6, -1)], axis=1).astype(np.int32)
    labels[0, 1] = -1  # the first image's guess is no longer among its labels
    batch = {"label": other.astype(np.int32), "labels": labels, "mask": np.ones(6, np.float32)}
    logits = {"cls": jax.nn.one_hot(guess, 10)}
    assert count_correct(logits, batch)["cls"][0] == 5
    assert count_correct(logits, batch | {"labels": labels[:, :1]})["cls"][0] == 0


def test_an_unreadable_image_is_in_no_top_5_and_costs_a_guess():
    batch = {"label": np.full(8, -1, np.int32), "mask": np.ones(8)}
    counts = count_correct({"cls": jax.random.normal(jax.random.key(0), (8, 4))}, batch)
    np.testing.assert_allclose(counts["cls"], [0, 0, 8 * np.log(4), 8], rtol=1e-6)


def test_predictions_are_of_the_images_that_count():
    cls, dist = jnp.array([[2.0, 0, 1], [0, 3, 0], [0, 0, 9]]), jnp.array([[0, 1.0, 0], [0, 0, 5], [9, 0, 0]])
    logits = {"cls": cls, "dist": dist, "fused_logits": (cls + dist) / 2}
    batch = {"image": np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, 3), "label": np.array([0, 1, 2])}
    found = Outcomes(["a", "b", "c"])
    found.add(batch | {"mask": np.array([1.0, 1.0, 0.0])}, jax.device_get(predict(logits)))
    assert [image[0, 0, 0] for *_, image in found.sheets["mistakes"]] == [1]
    assert found.column("label").tolist() == [0, 1]
    found_heads = {head: x.tolist() for head, x in found.heads.items()}
    assert found_heads == {"cls": [0, 1], "dist": [1, 2], "fused_logits": [0, 2]}
    np.testing.assert_allclose(found.column("confidence")[0], np.exp(1) / np.exp([1, 0.5, 0.5]).sum(), rtol=1e-6)


def test_batches_keep_their_order_and_their_weights(parts):
    """More batches than are in flight, two sets of weights, and an entry that no device can take."""
    graphdef, weights = parts
    sets = {"a": weights, "b": jax.tree.map(lambda x: x / 2, weights)}
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    stream = [batch | {"name": str(i)} for i, batch in enumerate(batches(images, np.zeros(40, np.int32)))]
    found = list(infer(graphdef, sets, iter(stream), mesh=sharding.make_mesh(), **PIXELS))
    assert [batch["name"] for batch, _ in found] == ["0", "1", "2", "3", "4"]
    for name, arrays in sets.items():
        direct = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
        cls, _ = direct.heads(normalize(jnp.asarray(images), *PIXELS.values()))
        logits = np.concatenate([outputs[name]["cls"] for _, outputs in found])
        np.testing.assert_allclose(logits, cls, rtol=1e-4, atol=1e-5)
