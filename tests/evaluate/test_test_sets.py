"""What `--data=` names, and what is said of data that cannot be evaluated."""

import json
from pathlib import Path

import numpy as np
import oracle
import pytest

from deit_jax.config import default_config
from deit_jax.data.base import ArraySource, FileSource, Subset, limit_images
from deit_jax.data.label_files import read_devkit, read_label_file
from deit_jax.data.sources import open_sources
from deit_jax.errors import UserError
from deit_jax.evaluate.test_sets import Spec, match_source, open_eval_set, parse_spec, present_classes


@pytest.fixture
def flat(tmp_path):
    for name in ("c.png", "a.png", "b.png"):
        oracle.save_image(tmp_path / "flat" / name, 0)
    return tmp_path / "flat"


def test_specs(tmp_path):
    here = str(tmp_path)
    assert parse_spec(f"v2={here},labels=x.json,split=val") == Spec("v2", tmp_path, "x.json", "val")
    assert parse_spec(here) == Spec(tmp_path.name, tmp_path)
    assert parse_spec("imagenet_v2/matched-frequency") == Spec("imagenet_v2/matched-frequency", None)
    for text in (f"x={here}/no", f"{here}/no", "digits,split=x"):
        with pytest.raises(UserError, match="does not exist: give NAME=FOLDER"):
            parse_spec(text)
    digits = open_eval_set("digits")
    assert (digits.name, len(digits.source)) == ("digits", 359)


def test_every_image_of_a_folder_is_taken(tmp_path):
    for c, i in np.ndindex(3, 7):
        oracle.save_image(tmp_path / f"c{c}" / f"{i}.png", i)
    rows = "".join(f"{path.relative_to(tmp_path)},ant\n" for path in tmp_path.glob("c*/*.png"))
    for spec in (str(tmp_path), f"{tmp_path},labels={write(tmp_path / 'few.csv', rows)}"):
        whole = open_eval_set(spec)
        assert len(whole.source) == 21


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "a.png,x\nb.png,y\n", "1 images have no label in .*l.csv: c.png"),
        ("l.csv", "a.png,x,1\n", "'a.png,x,1' is not name,class"),
        ("l.txt", "x\ny\n", "its ending is not .csv, .tsv or .json"),
        ("l.csv", "a.png,x\na.png,y\nb.png,y\nc.png,x\n", "line 2: a.png has two labels, x and y"),
        ("l.json", "[[1], [2]]", "2 entries for 3 images"),
        ("l.json", "[[1], [2], [1000]]", "class numbers from 0 to 999"),
        ("l.json", "{}", "not a list of lists"),
        ("l.json", "[", "cannot be read"),
        ("l.json", "[[], [], []]", "no image of .* has a right class"),
    ],
)
def test_bad_label_files(flat, tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        open_eval_set(f"{flat},labels={write(tmp_path / name, text)}")


def test_bad_folders(flat, tmp_path):
    with pytest.raises(UserError, match="holds images but no class folders: add labels=FILE"):
        open_eval_set(str(flat))
    with pytest.raises(UserError, match="labels .*nowhere do not exist"):
        open_eval_set(f"{flat},labels={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match="holds no readable"):
        read_devkit(flat)
    oracle.save_image(tmp_path / "t" / "train" / "ant" / "0.png", 0)
    with pytest.raises(UserError, match="none to evaluate on: add split=train"):
        open_eval_set(str(tmp_path / "t"))
    assert len(open_eval_set(f"{tmp_path / 't'},split=train").source) == 1
    with pytest.raises(UserError, match="split 'trian' is not a folder of .*did you mean train"):
        open_eval_set(f"{tmp_path / 't'},split=trian")
    table = write(tmp_path / "t.csv", "flat/a.png,ant\nflat/x.png,bee\n")
    with pytest.raises(UserError, match="line 2 names flat.x.png, which cannot be read"):
        open_eval_set(str(table))
    with pytest.raises(UserError, match="is not a folder: unpack it"):
        open_eval_set(str(write(tmp_path / "v2.tar.gz", "")))


def test_listed_images_that_are_not_there_are_named(flat, tmp_path):
    table = write(tmp_path / "l.csv", "a,x\nb,y\nc,x\nd.png,y\n")
    one = open_eval_set(f"{flat},labels={table}")
    assert "1 of its images are not in" in one.note
    assert "d.png" in one.note
    assert [one.source[i]["label"] for i in range(3)] == [0, 1, 0]


def test_the_order_of_a_list_is_that_of_the_names(tmp_path):
    path = write(tmp_path / "real.json", json.dumps([[5], [6, 7], [8]]))
    right = {"y/a.png": [5], "b.png": [6, 7], "x/c.png": [8]}
    assert read_label_file(path, ["b.png", "x/c.png", "y/a.png"]).right == right
    with pytest.raises(UserError, match="3 entries for 3 images of 2 names"):
        read_label_file(path, ["b.png", "x/a.png", "y/a.png"])


def test_classes_that_do_not_occur_need_no_output():
    source = ArraySource(np.zeros((4, 2, 2), np.uint8), np.array([2, 0, 2, 2]), ["bee", "no such", "ant"])
    np.testing.assert_array_equal(present_classes(source), [0, 2])
    np.testing.assert_array_equal(present_classes(Subset(source, np.array([0, 3]))), [2])
    classes, mapped = match_source(source, ["ant", "bee", "cat"], 3)
    assert [mapped[i]["label"] for i in range(4)] == [0, 1, 0, 0]
    assert (mapped.num_classes, classes.is_subset) == (3, True)
    with pytest.raises(UserError, match="'bee'"):
        match_source(source, ["ant", "cat", "dog"], 3)


def test_a_limit_is_spread_over_the_classes_and_leaves_training_alone(tmp_path):
    source = FileSource(tmp_path, [str(i) for i in range(100)], np.repeat(np.arange(10), 10), list("abcdefghij"))
    some = limit_images(source, 20)
    assert np.bincount(source.labels[some.positions]).tolist() == [2] * 10
    assert limit_images(source, 0) is limit_images(source, 100) is source
    config = default_config()
    config.data.name, config.evaluate.limit = "digits", 50
    train, evaluation = open_sources(config)
    assert (len(train), len(evaluation)) == (1438, 50)
    assert set(np.bincount([evaluation[i]["label"] for i in range(50)])) <= {4, 5, 6}


def test_labels_belong_to_paths(tmp_path):
    for site in ("siteA", "siteB"):
        for i in range(2):
            oracle.save_image(tmp_path / "set" / site / f"{i}.png", i)

    def labels(text):
        table = write(tmp_path / "t.csv", text)
        one = open_eval_set(f"v={tmp_path / 'set'},labels={table}")
        names = [one.source[i]["name"].removeprefix(f"{tmp_path}/set/") for i in range(4)]
        return {name: one.source.class_names[one.source[i]["label"]] for i, name in enumerate(names)}

    right = {"siteA/0.png": "cat", "siteA/1.png": "cat", "siteB/0.png": "dog", "siteB/1.png": "dog"}
    rows = "".join(f"{path},{label}\n" for path, label in right.items())
    assert labels(rows) == labels(rows.replace("site", "./site")) == labels(rows.replace(".png", "")) == right
    with pytest.raises(UserError, match="4 images have no label in .*: siteA/0.png"):
        labels(rows.replace("site", "other/site"))
    with pytest.raises(UserError, match="has 0.png, which may be siteA/0.png or siteB/0.png: write paths"):
        labels("0.png,cat\n1.png,dog\n")


def test_a_comma_in_a_path_is_part_of_it(tmp_path):
    for name in ("ant", "bee"):
        oracle.save_image(tmp_path / "a,b" / name / "0.png", 0)
    assert parse_spec(f"v={tmp_path}/a,b") == Spec("v", tmp_path / "a,b")
    assert len(open_eval_set(f"{tmp_path}/a,b").source) == 2
