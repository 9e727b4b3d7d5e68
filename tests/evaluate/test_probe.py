"""Probes of features: their answers by hand, and on weights without a head."""

import jax
import numpy as np
import pytest
from helpers import TINY_PLAIN, one_device, state_of
from safetensors.numpy import save_file

from deit_jax import load_model
from deit_jax.augment import normalize
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config, resolve
from deit_jax.data.images import eval_image
from deit_jax.data.sources import open_sources
from deit_jax.errors import UserError
from deit_jax.evaluate.evaluation_command import Request
from deit_jax.evaluate.probe import linear_probe, nearest_neighbours, probe_command


def votes_by_hand(known, labels, asked, classes, k, temperature):
    """The class of most votes, one image at a time."""
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    found = []
    for query in unit(asked.astype(np.float64)):
        cosine = unit(known.astype(np.float64)) @ query
        near = np.argsort(-cosine)[:k]
        found.append(np.bincount(labels[near], np.exp(cosine[near] / temperature), minlength=classes).argmax())
    return np.array(found)


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (3, 1.0), (500, 0.5)])
def test_the_nearest_vote_by_their_cosine(k, temperature):
    rng = np.random.default_rng(k)
    labels = rng.integers(0, 5, 200)
    known = (rng.standard_normal((5, 8))[labels] + 1.5 * rng.standard_normal((200, 8))).astype(np.float32)
    asked = rng.standard_normal((300, 8)).astype(np.float32)
    found = nearest_neighbours(known, labels, asked, k, temperature)
    np.testing.assert_array_equal(found, votes_by_hand(known, labels, asked, 5, k, temperature))
    assert (nearest_neighbours(known, labels, known * 7, 1) == labels).all(), "lengths do not count"


def test_classes_on_either_side_of_a_plane_are_told_apart_by_the_linear_probe():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 6)) * [1, 100, 1, 1, 0.01, 1]
    labels = (features[:, 1] / 100 + features[:, 4] * 100 > 0).astype(int)
    predicted = linear_probe(features[:300], labels[:300], features[300:])
    assert (predicted == labels[300:]).mean() > 0.95


@pytest.mark.slow
def test_weights_without_a_head_are_probed_on_the_runs_splits(tmp_path, capsys):
    file, full = tmp_path / f"{TINY_PLAIN}.safetensors", state_of(TINY_PLAIN, num_classes=10)
    save_file({key: x for key, x in full.items() if not key.startswith("head")}, file)
    config = default_config()
    config.data.name, config.data.limit, config.evaluate.limit, config.data.crop = "digits", 96, 40, 1.0
    given = {"data.name": "digits", "data.limit": 96, "evaluate.limit": 40}
    with one_device():
        (row,) = probe_command(config, given, Request((str(file),)), "knn")
    assert (row["train"], row["images"], row["kind"]) == (96, 40, "params")
    model = load_model(str(file), num_classes=10)

    def features_of(source):
        samples = [source[i] for i in range(len(source))]
        images = np.stack([eval_image(sample["image"], 16) for sample in samples])
        found = jax.jit(lambda x: model.features(normalize(x, IMAGENET_MEAN, IMAGENET_STD))[:, 0])(images)
        return np.asarray(found), np.array([sample["label"] for sample in samples])

    train, evaluation = map(features_of, open_sources(resolve(config)))
    expected = 100 * (votes_by_hand(*train, evaluation[0], 10, 20, 0.07) == evaluation[1]).mean()
    assert row["top1"] == pytest.approx(expected, abs=2.6)  # an image of 40, should a vote be close
    assert f"knn top-1 {row['top1']:.2f} % of 40 images, from 96 training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("request_", "kind", "message"),
    [
        (Request(("a",)), "knnn", "--probe knnn is not known"),
        (Request(("a",), ("val=b",)), "knn", "images of --config.data.root="),
        (Request(), "knn", "nothing to evaluate"),
    ],
)
def test_what_is_not_probed_is_one_line(request_, kind, message):
    with pytest.raises(UserError, match=message):
        probe_command(default_config(), {}, request_, kind)
