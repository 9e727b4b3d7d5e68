"""Scores per class and calibration against scikit-learn and counting by hand."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics

from deit_jax.errors import UserError
from deit_jax.evaluate.metrics import (
    calibration,
    class_scores,
    confusion_matrix,
    most_confused,
)


@pytest.fixture(scope="module")
def drawn():
    """(probabilities, labels) of 500 images and 7 classes; class 6 has no image, class 5 is never predicted."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 500)
    logits = rng.standard_normal((500, 7)) + 1.5 * np.eye(7)[labels]
    logits[:, 5] = -9
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_scores_are_scikit_learns(drawn):
    probabilities, labels = drawn
    predictions = probabilities.argmax(1)
    matrix = confusion_matrix(labels, predictions, 7)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predictions, labels=range(7)))
    scores = class_scores(labels, predictions, 7)
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(7), zero_division=np.nan
    )
    np.testing.assert_array_equal(scores.images, images)
    np.testing.assert_array_equal(scores.predicted, np.bincount(predictions, minlength=7))
    np.testing.assert_allclose(scores.precision, precision)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.f1[:6], f1[:6])
    assert np.isnan(scores.precision[5])
    assert np.isnan([scores.recall[6], scores.f1[6]]).all()


def test_most_confused_pairs_leave_out_what_is_right():
    matrix = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 9]])
    rows, columns = np.nonzero(matrix)
    labels, predictions = np.repeat(rows, matrix[rows, columns]), np.repeat(columns, matrix[rows, columns])
    assert most_confused(labels, predictions, 3) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert most_confused(labels, predictions, 3, 1) == [(1, 0, 5)]


def test_many_classes_cost_no_more_than_the_images():
    """ImageNet-21k: a matrix of all pairs would take 3.8 GB."""
    labels = np.array([21_842, 21_842, 21_842, 5, 7])
    predictions = np.array([0, 0, 21_842, 5, 5])
    tracemalloc.start()
    scores = class_scores(labels, predictions, 21_843)
    assert most_confused(labels, predictions, 21_843) == [(21_842, 0, 2), (7, 5, 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert (scores.recall[21_842], scores.precision[5], scores.images[21_842]) == (pytest.approx(1 / 3), 0.5, 3)


def test_calibration_by_hand():
    """Confidences 0.95, 0.85 | 0.65, 0.55: in bins of a half all in the upper; of a fifth, in two."""
    top = np.array([0.95, 0.85, 0.65, 0.75])
    found = calibration(top, np.array([0, 0, 1, 0]) == 0, bins=5)
    assert found.images.tolist() == [0, 0, 0, 2, 2]
    np.testing.assert_allclose(found.confidence[3:], [0.7, 0.9])
    np.testing.assert_allclose(found.accuracy[3:], [0.5, 1.0])
    assert np.isnan(found.accuracy[0])
    assert found.error == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert found.largest == pytest.approx(0.2)


def test_calibration_at_the_ends_and_of_a_calibrated_model(drawn):
    sure = calibration(np.ones(2), np.ones(2, bool))
    assert (sure.images[-1], sure.error) == (2, 0.0)
    probabilities, _ = drawn
    rng = np.random.default_rng(1)
    labels = np.array([rng.choice(7, p=p / p.sum()) for p in np.repeat(probabilities, 40, axis=0)])
    repeated = np.repeat(probabilities, 40, axis=0)
    assert calibration(repeated.max(1), repeated.argmax(1) == labels).error < 0.02
    assert calibration(np.full(100, 0.5), np.zeros(100, bool)).error == pytest.approx(0.5)


def test_bad_input():
    for labels, predictions, message in (
        ([0, 1], [0], "must be one index per image"),
        ([0, 2], [0, 1], "labels lie in 0 … 2, outside 0 … 1"),
        ([0, 1], [0, -1], "predictions lie in -1 … 0"),
    ):
        with pytest.raises(UserError, match=message):
            confusion_matrix(np.array(labels), np.array(predictions), 2)
    with pytest.raises(UserError, match="not logits"):
        calibration(np.array([3.0]), np.array([True]))
    with pytest.raises(UserError, match="at least one image"):
        calibration(np.zeros(0), np.zeros(0, bool))
