"""Scores per class and calibration against scikit-learn and counting by hand."""

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics

from deit_jax.evaluate.metrics import calibration, class_scores, confusion_matrix, most_confused


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
    np.testing.assert_array_equal(scores["images"], images)
    np.testing.assert_array_equal(scores["predicted"], np.bincount(predictions, minlength=7))
    np.testing.assert_allclose(scores["precision"], precision)
    np.testing.assert_allclose(scores["recall"], recall)
    np.testing.assert_allclose(scores["f1"][:6], f1[:6])
    assert np.isnan([scores["precision"][5], scores["recall"][6], scores["f1"][6]]).all()


def test_most_confused_pairs_leave_out_what_is_right():
    matrix = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 9]])
    rows, columns = np.nonzero(matrix)
    labels, predictions = np.repeat(rows, matrix[rows, columns]), np.repeat(columns, matrix[rows, columns])
    assert most_confused(labels, predictions) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]
    assert most_confused(labels, predictions, 1) == [(1, 0, 5)]
    assert most_confused(labels, labels) == []


def test_many_classes_cost_no_more_than_the_images():
    """ImageNet-21k: a matrix of all pairs would take 3.8 GB."""
    labels = np.array([21_842, 21_842, 21_842, 5, 7])
    predictions = np.array([0, 0, 21_842, 5, 5])
    tracemalloc.start()
    scores = class_scores(labels, predictions, 21_843)
    assert most_confused(labels, predictions) == [(21_842, 0, 2), (7, 5, 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert scores["recall"][21_842] == pytest.approx(1 / 3)
    assert (scores["precision"][5], scores["images"][21_842]) == (0.5, 3)


def test_calibration_by_hand(drawn):
    """Confidences 0.95, 0.85 | 0.65, 0.75, in bins of a fifth; then at the ends, and of a calibrated model."""
    found = calibration(np.array([0.95, 0.85, 0.65, 0.75]), np.array([True, True, False, True]), bins=5)
    assert found["images"].tolist() == [0, 0, 0, 2, 2]
    np.testing.assert_allclose(found["confidence"][3:], [0.7, 0.9])
    np.testing.assert_allclose(found["accuracy"], [np.nan, np.nan, np.nan, 0.5, 1.0])
    assert found["expected_calibration_error"] == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert found["largest_difference"] == pytest.approx(0.2)

    error = lambda *arguments: calibration(*arguments)["expected_calibration_error"]
    assert error(np.ones(2), np.ones(2, bool)) == 0
    assert error(np.full(100, 0.5), np.zeros(100, bool)) == pytest.approx(0.5)
    repeated = np.repeat(drawn[0], 40, axis=0)
    rng = np.random.default_rng(1)
    labels = np.array([rng.choice(7, p=p / p.sum()) for p in repeated])
    assert error(repeated.max(1), repeated.argmax(1) == labels) < 0.02
