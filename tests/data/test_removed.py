"""Images that a run could not read and that were removed since: the run's data stays what it was."""

import json
import os

import numpy as np
import pytest
from helpers import folder_of_images

from deit_jax.config import default_config, resolve
from deit_jax.data import pipeline, sources
from deit_jax.data.base import summary
from deit_jax.data.check import HeaderCheck
from deit_jax.data.removed import BrokenFile, BrokenRecord, read_broken, removed_positions
from deit_jax.errors import UserError
from deit_jax.train.setup import open_data

SIZE = 8
DAMAGED = '[{"split": "", "name": "a", "position": "x", "label": "a", "size": 1, "digest": "zz"}]'


def settings(root, **data):
    config = default_config()
    config.data.root, config.batch_size, config.augment.repeats = str(root), 4, 1
    config.data.update(data)
    return resolve(config)


def held_out(root):
    return folder_of_images(root, classes=2, images=10)


def with_validation(root):
    for split in ("train", "val"):
        folder_of_images(root / split, classes=2, images=6)
    return root


def listed(root):
    folder_of_images(root, classes=2, images=10)
    rows = [f"{p.relative_to(root)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    (root / "list.csv").write_text("\n".join(reversed(rows)) + "\n")
    return root / "list.csv"


def training(config, data, record=None):
    """Two passes of training batches."""
    made = pipeline.train_batches(config, data.train, size=SIZE, on_broken=record.add if record else None)
    batches = [next(made) for _ in range(2 * pipeline.steps_per_epoch(config, data.train))]
    made.close()
    return batches, made


def evaluation(config, data, record=None):
    return list(pipeline.eval_batches(config, data.evaluation, size=SIZE, on_broken=record.add if record else None))


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("layout", [held_out, with_validation, listed])
@pytest.mark.parametrize("check", ["size", "content"])
@pytest.mark.parametrize("how", ["wrong", "skip"])
def test_a_removed_broken_image_changes_nothing(tmp_path, layout, check, how):
    config = settings(layout(tmp_path / "photos"), check=check, eval_broken=how)
    before = sources.open_sources(config)
    spoiled = [
        source.path(i) if hasattr(source, "path") else source.source.path(source.positions[i])
        for source, i in ((before[0], 3), (before[0], 7), (before[1], 1))
    ]
    for path in spoiled:
        with open(path, "wb") as file:
            file.write(b"not an image")

    workdir = tmp_path / "run"
    workdir.mkdir()
    record = BrokenRecord(workdir)
    data = open_data(config, workdir)
    prints = [source.fingerprint for source in data]
    ours, made = training(config, data, record)
    evaluated = evaluation(config, data, record)
    assert made.broken >= 2
    assert len(read_broken(workdir)) == 3

    for path in spoiled:
        os.unlink(path)
    if layout is listed:  # one row is taken out, two stay
        table = tmp_path / "photos/list.csv"
        rows = table.read_text().splitlines()
        table.write_text("\n".join(row for row in rows if not spoiled[0].endswith(row.split(",")[0])))
    later = open_data(config, workdir)
    assert [source.fingerprint for source in later] == prints
    theirs, made = training(config, later)
    same(ours, theirs)
    assert made.broken == 0  # so that too many of them, removed, no longer stop the run
    same(evaluated, evaluation(config, later))
    assert any("removed after the run recorded" in line for line in summary(*later))
    assert not any("removed after" in line for line in summary(*before))


def test_what_the_run_did_not_report_is_missed(tmp_path):
    config = settings(held_out(tmp_path / "photos"))
    workdir = tmp_path / "run"
    workdir.mkdir()
    before = open_data(config, workdir).train.fingerprint
    (tmp_path / "photos/class1/4.png").unlink()
    assert open_data(config, workdir).train.fingerprint != before


def test_a_repaired_image_is_another_image(tmp_path):
    """It takes part from now on, which it did not before: that is another run's data."""
    config = settings(held_out(tmp_path / "photos"))
    path = tmp_path / "photos/class1/4.png"
    whole = path.read_bytes()
    path.write_bytes(b"not an image")
    source = sources.open_sources(config)[0]
    workdir = tmp_path / "run"
    workdir.mkdir()
    record = BrokenRecord(workdir)
    position = next(i for i in range(len(source)) if source[i]["name"] == str(path))
    record.add(source, position)
    path.write_bytes(whole)
    later = open_data(config, workdir).train
    assert later.fingerprint != source.fingerprint
    assert removed_positions(later) == frozenset()


def test_the_record_outlives_its_process_and_knows_each_file_once(tmp_path):
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    for process in (0, 0, 1):
        record = BrokenRecord(tmp_path, process)
        record.add(source, 3)
        record.add(source, 3)
        record.add(source, 5)
    assert [file.position for file in read_broken(tmp_path)] == [3, 5]
    assert json.loads((tmp_path / "broken-0.json").read_text())[0] == {
        "split": "",
        "name": "class0/3.png",
        "position": 3,
        "label": "class0",
        "digest": "",
        "size": os.path.getsize(tmp_path / "photos/class0/3.png"),
    }


def test_records_of_the_runs_inside_a_run_count(tmp_path):
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    for position, folder in enumerate(("teacher", "labels/teacher-0-hard")):
        (tmp_path / folder).mkdir(parents=True)
        BrokenRecord(tmp_path / folder).add(source, position)
    assert [file.position for file in read_broken(tmp_path)] == [0, 1]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"name": "x"}]', "null", "\0", DAMAGED])
def test_a_damaged_record_counts_as_none(tmp_path, text):
    (tmp_path / "broken-0.json").write_text(text)
    assert read_broken(tmp_path) == []
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    BrokenRecord(tmp_path).add(source, 1)
    assert len(read_broken(tmp_path)) == 1


def test_images_that_are_no_files_are_passed_over(tmp_path):
    BrokenRecord(tmp_path).add(sources.open_digits()[0], 3)
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path):
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    BrokenRecord(tmp_path / "gone").add(source, 1)
    assert not (tmp_path / "gone").exists()


def test_what_the_background_check_finds_is_recorded(tmp_path):
    root = held_out(tmp_path / "photos")
    (root / "class1/4.png").write_bytes(b"not an image")
    with HeaderCheck(sources.scan_folder(root)[0], on_broken=BrokenRecord(tmp_path).add) as check:
        check.wait()
    assert [file.name for file in read_broken(tmp_path)] == ["class1/4.png"]


def test_data_that_is_all_removed_is_one_line(tmp_path):
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    names, files = [os.fsdecode(name) for name in source.names], [source.broken_file(i) for i in range(len(source))]
    for name in names:
        os.unlink(tmp_path / "photos" / name)
    gone = sources.FileSource(source.root, names, source.labels, source.class_names, broken=files)
    assert removed_positions(gone) == set(range(len(source)))
    batches = pipeline.train_batches(settings(tmp_path / "photos"), gone, size=SIZE)
    with pytest.raises(UserError, match="all 20 training images were removed"):
        next(batches)
    batches.close()


def test_positions_of_a_part(tmp_path):
    source, _ = sources.scan_folder(held_out(tmp_path / "photos"))
    gone = BrokenFile("", "class0/3.png", 3, "class0", 7)
    os.unlink(source.path(3))
    whole = sources.scan_folder(tmp_path / "photos")[0]
    restored = sources.FileSource(
        whole.root, [os.fsdecode(n) for n in whole.names], whole.labels, whole.class_names, broken=[gone]
    )
    np.testing.assert_array_equal(restored.names, source.names)
    np.testing.assert_array_equal(restored.labels, source.labels)
    assert removed_positions(restored) == {3}
    assert removed_positions(sources.Subset(restored, np.array([1, 3, 5]))) == {1}
    assert removed_positions(sources.Subset(restored, np.array([1, 5]))) == frozenset()
