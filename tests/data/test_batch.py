"""The order of views and the layout of a batch."""

import numpy as np
import pytest

from deit_jax.augment.mix import num_groups
from deit_jax.data import assemble
from deit_jax.data.base import spread
from deit_jax.randomness import generator


def views(step, *, seed=0, length=1000, batch=64, repeats=3, mix_group=64, **more):
    return assemble.batch_views(
        step, seed=seed, length=length, batch=batch, repeats=repeats, mix_group=mix_group, **more
    )


def epoch_views(epoch: int, *, length=1000, batch=64, **kwargs):
    steps = length // batch
    taken = [views(epoch * steps + k, length=length, batch=batch, **kwargs) for k in range(steps)]
    assert {e for e, _, _ in taken} == {epoch}
    return np.concatenate([i for _, i, _ in taken]), np.concatenate([r for _, _, r in taken])


@pytest.mark.parametrize("batch", [1024, 256, 128, 64, 96, 100, 16, 12, 9, 8, 67, 101, 127, 134, 335, 509])
@pytest.mark.parametrize("repeats", [2, 3, 4])
def test_copies_of_an_image_are_never_mixed_with_each_other(batch, repeats):
    length = 3 * batch + 5
    for step in range(9):
        _, index, _ = views(step, length=length, batch=batch, repeats=repeats)
        for group in np.array_split(index, num_groups(batch, 64)):
            half = len(group) // 2
            assert (group[:half] != group[::-1][:half]).all()


@pytest.mark.parametrize("batch", [1024, 100, 9, 1, 67, 134, 509])
def test_layout_is_a_permutation(batch):
    np.testing.assert_array_equal(np.sort(assemble.row_order(batch, 64)), np.arange(batch))


def test_views_are_dealt_to_groups_in_turn():
    """The release's sampler: with R processes, process g takes every R-th view from the g-th on."""
    _, index, repeat = views(2, length=4096, batch=256)
    shuffled = assemble.epoch_order(0, 0, 4096)
    sequence = np.arange(512, 768)
    for group in range(4):
        rows = slice(64 * group, 64 * group + 64)
        dealt = sequence[group::4]
        found = sorted(zip(index[rows], repeat[rows], strict=True))
        assert found == sorted(zip(shuffled[dealt // 3], dealt % 3, strict=True))


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_repeats_of_an_epoch(epoch):
    index, repeat = epoch_views(epoch)
    assert len(index) == 15 * 64
    pairs = set(zip(index.tolist(), repeat.tolist(), strict=True))
    assert len(pairs) == len(index)
    assert set(np.bincount(index)[np.unique(index)]) == {3}
    assert set(repeat.tolist()) == {0, 1, 2}


def test_without_repeats_every_image_comes_once():
    index, repeat = epoch_views(3, length=640, repeats=1)
    np.testing.assert_array_equal(np.sort(index), np.arange(640))
    assert not repeat.any()


@pytest.mark.parametrize(("length", "batch"), [(200, 16), (50, 16), (53, 13), (64, 16), (17, 16), (16, 16)])
def test_without_drop_last_every_image_comes_in_every_pass(length, batch):
    steps = assemble.epoch_steps(length, batch, drop_last=False)
    assert steps == -(-length // batch)
    for epoch in (0, 3):
        taken = [views(epoch * steps + k, length=length, batch=batch, repeats=1, drop_last=False) for k in range(steps)]
        assert {e for e, _, _ in taken} == {epoch}
        index, repeat = (np.concatenate([part[which] for part in taken]) for which in (1, 2))
        assert len(index) == steps * batch
        np.testing.assert_array_equal(np.sort(index[repeat == 0]), np.arange(length))
        extra = assemble.epoch_order(0, epoch, length)[: steps * batch - length]  # the pass's first images, once more
        np.testing.assert_array_equal(np.sort(index[repeat == 1]), np.sort(extra))
        assert repeat.max(initial=0) <= 1


def test_whole_batches_are_the_same_either_way():
    for step in range(3 * 12):
        kept = views(step // 12 * 13 + step % 12, length=200, batch=16, repeats=1, drop_last=False)
        for ours, theirs in zip(kept, views(step, length=200, batch=16, repeats=1), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_epochs_and_seeds_have_other_orders():
    orders = [assemble.epoch_order(seed, epoch, 500) for seed in (0, 1) for epoch in (0, 1)]
    for a in range(4):
        np.testing.assert_array_equal(np.sort(orders[a]), np.arange(500))
        for b in range(a):
            assert (orders[a] == orders[b]).mean() < 0.05


def test_generators_of_different_places_differ():
    places = [(0, "order"), (1, "order"), (0, "crop"), (0, "order", 1), (0, "order", 0, 1), (0, "order", 0, 0, 1)]
    draws = {generator(*place).random() for place in places}
    assert len(draws) == len(places)
    assert generator(3, "crop", 5, 7, 1).random() == generator(3, "crop", 5, 7, 1).random()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_spread_takes_its_share_of_every_class(share):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
    held = spread(labels, share, seed=0)
    count = min(max(round(400 * share), 1), 399)
    assert len(np.unique(held)) == len(held) == count
    per_class = np.bincount(labels[held], minlength=10)
    assert np.abs(per_class - count / 10).max() <= 1
