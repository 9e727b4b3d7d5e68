"""Batches: the same for any workers, processes or start; broken images; padding."""

import itertools
import logging

import numpy as np
import pytest
from helpers import configured
from PIL import Image

from deit_jax.data import images, loader, sources
from deit_jax.data.batch import eval_entries, train_entries
from deit_jax.data.folders import scan_folder
from deit_jax.data.tools import prepare
from deit_jax.errors import UserError
from deit_jax.randomness import generator

SIZE = 24


def settings(**changes):
    """`changes` by names with __ for the dot."""
    return configured(**{"batch_size": 16} | {name.replace("__", "."): value for name, value in changes.items()})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """90 JPEG and PNG files of different sizes in three class folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(90):
        folder = root / f"class_{number % 3}"
        folder.mkdir(exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        pixels = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height), Image.BICUBIC)
        image.save(folder / f"{number:03}.{'png' if number % 5 == 0 else 'jpg'}")
    return root


@pytest.fixture
def source(photos):
    return scan_folder(photos)


def take(count, config, source, **kwargs):
    batches = loader.train_batches(config, source, size=SIZE, **kwargs)
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_training_batch_holds_the_views_its_numbers_name(source):
    config = settings(seed=3)
    for step, batch in enumerate(take(7, config, source)):
        assert set(batch["epoch"]) == {step // 5}
        for row in range(16):
            index, epoch, repeat = (int(batch[key][row]) for key in ("index", "epoch", "repeat"))
            sample = source[index]
            pixels = images.decode(sample["image"])
            rng = generator(3, "crop", epoch, index, repeat)
            box = images.draw_crop(rng, *pixels.shape[:2], config.augment.crop_scale, config.augment.crop_ratio)
            np.testing.assert_array_equal(batch["image"][row], images.random_resized_crop(pixels, box, SIZE))
            assert batch["label"][row] == sample["label"]


@pytest.mark.parametrize(
    "change", [{"data__workers": 1}, {"data__workers": 3}, {"data__threads": 1}, {"data__threads": 3}]
)
def test_workers_and_threads_change_nothing(source, change):
    assert_same(take(9, settings(**change), source), take(9, settings(), source))


@pytest.mark.parametrize("start", [1, 4, 5, 12])
def test_resumed_stream_is_the_uninterrupted_one(source, start):
    assert_same(take(3, settings(), source, start=start), take(start + 3, settings(), source)[start:])
    assert set(take(1, settings(), source, start=10**9)[0]["epoch"]) == {10**9 // 5}, "and as fast far on"


@pytest.mark.parametrize("processes", [2, 8])
def test_processes_share_the_global_batch(source, processes):
    whole = take(6, settings(), source)
    parts = [take(6, settings(), source, process_index=p, process_count=processes) for p in range(processes)]
    joined = [{key: np.concatenate([part[k][key] for part in parts]) for key in whole[0]} for k in range(6)]
    assert_same(joined, whole)


def test_batches_are_what_their_definition_says(source):
    held = next(loader.eval_batches(settings(), source, size=SIZE))
    for made, entries in ((take(1, settings(), source)[0], train_entries), (held, eval_entries)):
        shapes = {name: (array.shape, array.dtype) for name, array in made.items()}
        assert shapes == {name: (x.shape, x.dtype) for name, x in entries(SIZE, 16).items()}


@pytest.mark.parametrize(
    ("workers", "processes", "batch"), [(0, 1, 16), (0, 1, 90), (0, 2, 16), (0, 2, 100), (2, 1, 16)]
)
def test_evaluation_shows_every_image_once(source, workers, processes, batch):
    config = settings(data__eval_batch_size=batch, data__workers=workers)
    parts = [
        list(loader.eval_batches(config, source, size=SIZE, process_index=p, process_count=processes))
        for p in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-90 // batch)}
    joined = {key: [np.concatenate([p[k][key] for p in parts]) for k in range(len(parts[0]))] for key in parts[0][0]}
    assert all(len(rows) == batch for rows in joined["image"])
    shown, masks, labels = (np.concatenate(joined[key]) for key in ("image", "mask", "label"))
    assert masks.dtype == np.float32
    np.testing.assert_array_equal(masks, np.arange(len(masks)) < 90)
    assert not shown[90:].any()
    for number in range(90):
        sample = source[number]
        np.testing.assert_array_equal(shown[number], images.eval_image(sample["image"], SIZE))
        assert labels[number] == sample["label"]


class Spoiled:
    """A source of which some images are broken."""

    def __init__(self, source, broken):
        self.source, self.broken = source, frozenset(broken)
        self.class_names, self.num_classes, self.fingerprint = source.class_names, source.num_classes, "0"

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        sample = self.source[index]
        return sample | {"image": sample["image"][:40]} if index in self.broken else sample


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_image_is_named_replaced_and_counted(source, caplog, workers):
    broken = {7, 8, 89}
    config = settings(data__workers=workers, augment__repeats=1)
    batches = loader.train_batches(config, Spoiled(source, broken), size=SIZE)
    with caplog.at_level(logging.WARNING, logger="deit_jax"):
        got = [next(batches) for _ in range(10)]
    batches.close()
    clean = take(10, settings(augment__repeats=1), source)
    met = 0
    for ours, theirs in zip(got, clean, strict=True):
        for row in range(16):
            wanted = int(theirs["index"][row])
            met += {7: 2, 8: 1, 89: 1}.get(wanted, 0)
            assert ours["index"][row] == {7: 9, 8: 9, 89: 0}.get(wanted, wanted)
            assert ours["label"][row] == source[int(ours["index"][row])]["label"]
    assert met > 0
    assert (batches.broken.total(), batches.seen) == (met, 160)
    named = [record.getMessage() for record in caplog.records]
    assert len(named) == len(set(named))
    assert any(source.path(8) in text for text in named)


@pytest.mark.parametrize(
    ("max_broken", "floor", "files", "stops"),
    [(0.01, 1, 2, True), (0.0, 10, 11, True), (0.1, 10, 1, False), (0.0, 10, 10, False)],
)
def test_run_stops_above_the_rate_of_broken_images(source, max_broken, floor, files, stops):
    config = settings(data__max_broken=max_broken, data__broken_floor=floor)
    batches = loader.train_batches(config, Spoiled(source, range(0, 4 * files, 4)), size=SIZE)
    if stops:
        with pytest.raises(UserError, match=rf"cannot be read, of {files} files.*raise data\.max_broken"):
            list(itertools.islice(batches, 70))
        assert loader.MIN_VIEWS <= batches.seen < loader.MIN_VIEWS + 16
    else:
        assert len(list(itertools.islice(batches, 70))) == 70
        assert 0 < batches.broken.total() < batches.seen
    assert len(batches.broken) == files


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images(source, workers):
    batches = loader.train_batches(settings(data__workers=workers), Spoiled(source, range(90)), size=SIZE)
    with pytest.raises(UserError, match=r"64 images in a row cannot be read, the first: .*class_"):
        next(batches)
    batches.close()
    with pytest.raises(UserError, match="none of the 90 evaluation images can be read, the first: .*class_0"):
        list(loader.eval_batches(settings(), Spoiled(source, range(90)), size=SIZE))


@pytest.mark.parametrize(("workers", "how"), [(0, "wrong"), (0, "skip"), (1, "wrong")])
def test_broken_evaluation_image_is_named_and_counts_as_wrong_or_not(source, workers, how, caplog):
    config = settings(data__workers=workers, data__eval_broken=how)
    batches = loader.eval_batches(config, Spoiled(source, {1, 89}), size=SIZE)
    found = list(batches)
    mask, labels = (np.concatenate([batch[key] for batch in found]) for key in ("mask", "label"))
    counts = np.delete(mask[:90], [1, 89])
    assert counts.all()
    np.testing.assert_array_equal(mask[[1, 89]], how == "wrong")
    np.testing.assert_array_equal(labels[[1, 89]], -1)
    assert (len(batches.broken), batches.seen) == (2, 90)
    assert [source.path(i) in name for i, name in zip((1, 89), batches.broken, strict=True)] == [True, True]
    effect = "are left out" if how == "skip" else "count as wrong"
    assert f"2 of 90 evaluation images cannot be read: they {effect}" in caplog.text


def test_label_outside_the_classes():
    source = sources.ArraySource(np.zeros((32, 8, 8), np.uint8), np.full(32, 5), ["a", "b", "c"], name="made")
    with pytest.raises(UserError, match=r"made\[\d+\] has label 5: labels are 0 to 2"):
        take(1, settings(), source)
    with pytest.raises(UserError, match=r"made\[0\] has label 5"):
        next(loader.eval_batches(settings(), source, size=8))


def test_batches_that_cannot_be(source):
    with pytest.raises(UserError, match="is more than the 90 training images: use --config.batch_size=88"):
        loader.train_batches(settings(batch_size=128), source, size=SIZE)  # a multiple of the tests' eight devices
    with pytest.raises(UserError, match="batch size 16 is not divisible by 3 processes: use 15"):
        loader.train_batches(settings(), source, size=SIZE, process_count=3)


def test_fast_resize_takes_the_same_crops(source):
    exact, fast = take(3, settings(), source), take(3, settings(data__resize="fast"), source)
    for a, b in zip(exact, fast, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        difference = np.abs(a["image"].astype(int) - b["image"])
        assert difference.max() > 0
        assert difference.mean() < 0.5


def test_shards_make_the_folders_batches(photos, tmp_path):
    prepare.prepare(photos, tmp_path / "shards")
    config = settings(data__root=str(tmp_path / "shards"), data__workers=1)
    ours, held = sources.open_sources(config)
    config.data.root = str(photos)
    theirs, _ = sources.open_sources(config)
    assert len(held) == 9
    assert_same(take(6, config, ours), take(6, config, theirs))


def test_exif_reaches_training_and_evaluation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    for number in range(16):
        (tmp_path / f"c{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"c{number % 2}" / f"{number}.png", exif=exif)
    source = scan_folder(tmp_path)
    for on, bright in ((False, slice(0, 8)), (True, slice(16, 24))):
        config = settings(data__exif=on, augment__crop_scale=(1.0, 1.0), augment__crop_ratio=(1.0, 1.0))
        held = next(loader.eval_batches(config, source, size=SIZE))
        for batch in (*take(1, config, source), held):
            assert batch["image"][:, bright].min() > 200


def test_unreadable_headers_are_named(source, caplog):
    assert loader.check_headers(settings(), sources.open_digits()[1]) == []
    found = loader.check_headers(settings(), Spoiled(source, {5, 80}))
    assert [source.path(i) in name for i, name in zip((5, 80), found, strict=True)] == [True, True]
    assert "2 of 90 evaluation images cannot be read" in caplog.text
    assert all(name in caplog.text for name in found)
