"""Frequent mistakes and calibration against counting by hand."""

import tracemalloc

import numpy as np
import pytest

from deit_jax.evaluate.metrics import calibration_error, most_confused


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
    assert most_confused(labels, predictions) == [(21_842, 0, 2), (7, 5, 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def test_calibration_by_hand():
    """Confidences 0.95, 0.85 | 0.65, 0.75, in bins of a fifth; then at the ends, and of a calibrated model."""
    found = calibration_error(np.array([0.95, 0.85, 0.65, 0.75]), np.array([True, True, False, True]), bins=5)
    assert found == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)
    assert calibration_error(np.ones(2), np.ones(2, bool)) == 0
    assert calibration_error(np.full(100, 0.5), np.zeros(100, bool)) == pytest.approx(0.5)
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(7), 20_000)
    labels = np.array([rng.choice(7, p=p) for p in probabilities])
    assert calibration_error(probabilities.max(1), probabilities.argmax(1) == labels) < 0.02
