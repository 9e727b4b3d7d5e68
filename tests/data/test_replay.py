"""`label.views`: epochs of views that longer runs repeat, whole mixing groups in another order."""

import jax
import numpy as np
import pytest
from helpers import tiny_config

from deit_jax.augment import augment_train
from deit_jax.data import loader, sources
from deit_jax.data.replay import stored_groups
from deit_jax.errors import UserError
from deit_jax.randomness import purpose_key

GROUP, GROUPS, PER_EPOCH, VIEWS = 16, 4, 4, 2


def config(**changes):
    mixed = {"augment.erasing": 0.0, "augment.mix_group": GROUP, "data.limit": 256, "label.views": VIEWS}
    return tiny_config(**mixed | changes)


def stored(step, rows):
    """Labels that say where they are stored."""
    return {"teacher": 64 * step + np.arange(rows.start, rows.stop)}


def batches(c, steps, **options):
    source, _ = sources.open_sources(c)
    found = {}
    for step in steps:
        stream = loader.train_batches(c, source, size=16, start=step, stored_labels=stored, **options)
        found[step] = next(stream)
        stream.close()
    return found


def places(epoch: int) -> list[tuple[int, int]]:
    steps = range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH)
    options = {"seed": 1, "per_epoch": PER_EPOCH, "groups": GROUPS, "views": VIEWS}
    return [(int(at), int(group)) for step in steps for at, group in stored_groups(step, **options)]


def test_each_repetition_has_every_group_of_its_epoch_once_in_an_order_of_its_own():
    for epoch in range(VIEWS):
        first = places(epoch)
        assert first == [(epoch * PER_EPOCH + step, group) for step in range(PER_EPOCH) for group in range(GROUPS)]
        again = [places(epoch + VIEWS), places(epoch + 2 * VIEWS)]
        assert sorted(again[0]) == sorted(again[1]) == first
        assert len({tuple(order) for order in (first, *again)}) == 3


@pytest.mark.parametrize("repeats", [1, 3])
def test_repeated_views_are_the_first_ones_pixel_for_pixel_with_their_labels(repeats):
    c, plain = config(**{"augment.repeats": repeats}), config(**{"augment.repeats": repeats, "label.views": 0})
    augment = jax.jit(lambda batch, step: augment_train(batch, purpose_key(0, "augment"), step, c.augment, 10, 1))
    known = batches(plain, range(VIEWS * PER_EPOCH))
    views = {step: jax.device_get(augment(batch, step)) for step, batch in known.items()}
    for step, batch in batches(c, [*range(0, 8, 3), *range(8, 16, 3), 27]).items():
        images, targets = jax.device_get(augment(batch, step))
        where = stored_groups(step, seed=0, per_epoch=PER_EPOCH, groups=GROUPS, views=VIEWS)
        for number, (at, group) in enumerate(where.tolist()):
            ours, theirs = (slice(g * GROUP, (g + 1) * GROUP) for g in (number, group))
            np.testing.assert_array_equal(images[ours], views[at][0][theirs])
            np.testing.assert_array_equal(targets[ours], views[at][1][theirs])
            for name in ("teacher", "label", "index", "epoch", "repeat"):
                np.testing.assert_array_equal(batch[name][ours], known[at][name][theirs])
        eighth = batches(c, [step], process_index=3, process_count=8)[step]
        for name, values in eighth.items():
            np.testing.assert_array_equal(values, batch[name][24:32])


def test_groups_of_several_sizes_cannot_be_repeated():
    with pytest.raises(UserError, match="needs a batch_size of whole groups: a multiple of 64"):
        batches(config(batch_size=67, **{"augment.mix_group": 64}), [0])
