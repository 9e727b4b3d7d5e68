"""Odd inputs of each kind: the right data, or one line and exit code 2; never a traceback or, unsaid, other data."""

import csv
import json
import os

import numpy as np
import pytest
from helpers import numbered_image, opened, refusal, tool

from deit_jax import plots
from deit_jax.config import default_config
from deit_jax.data import base, loader
from deit_jax.data.folders import scan_folder
from deit_jax.data.tools import prepare, show
from deit_jax.errors import UserError


def folder(root, *names: str | bytes, images: int = 2):
    """Class folders of images."""
    for number, name in enumerate(names or ("ant", "bee")):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(path)
        for i in range(images):
            with open(os.path.join(path, b"%d.png" % i), "wb") as file:
                file.write(numbered_image(10 * number + i))
    return root


def refused(root) -> None:
    done = tool("data.tools.doctor", root)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def accepted(root) -> str:
    done = tool("data.tools.doctor", root)
    assert done.code == 0
    assert "\x1b" not in done.out
    done.out.encode()  # it can be written to a terminal
    return done.out


# --- names

NAMES = ["$x_^", "a\x1b[31mred", "tab\there", "line\nbreak", b"\xff\xfe", "ü", "u\u0308", "\u202egnp", "-rf", "x..."]
NAMES += ["日本", "a b ", "C:", "%s{}"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_class_survives(tmp_path, name):
    root = folder(tmp_path / "set", "plain", name)
    out = accepted(root)
    assert "unreadable images: 0" in out
    train, evaluation = opened(root)
    assert train.num_classes == 2
    assert json.loads(json.dumps(train.class_names)) == train.class_names
    "".join(train.class_names).encode()  # text that can be stored
    assert base.summary(train, evaluation)
    prepare.prepare(root, tmp_path / "shards")
    again = opened(tmp_path / "shards")[0]
    assert again.class_names == train.class_names
    assert {again[i]["image"] for i in range(len(again))} == {train[i]["image"] for i in range(len(train))}
    captions = [show.caption(target, train.class_names) for target in np.eye(2)]
    plots.contact_sheet(tmp_path / "sheet.png", list(np.zeros((2, 8, 8, 3), np.uint8)), captions)


def test_any_name_of_an_image_survives(tmp_path, caplog):
    root = folder(tmp_path / "set")
    for name in (b"\xff\x1b[2J.png", b"new\nline.png", b"$_^.jpg"):
        with open(os.path.join(os.fsencode(root), b"ant", name), "wb") as file:
            file.write(b"not an image")
    code, out, _ = tool("data.tools.doctor", root)
    assert code == 1
    assert "unreadable images: 3" in out
    assert "\\xff\\x1b[2J.png" in out
    assert "new\\x0aline.png" in out
    config = default_config()
    config.data.root, config.batch_size = str(root), 4
    source = scan_folder(root)
    batches = loader.eval_batches(config, source, size=8)
    assert len(list(batches)) == 2
    assert len(batches.broken) == 3
    assert "\x1b" not in caplog.text


# --- what lies in folders


def test_what_is_not_a_file_is_named_and_passed_over(tmp_path):
    root = folder(tmp_path / "set")
    os.mkfifo(root / "ant" / "pipe.png")
    (root / "ant" / "gone.png").symlink_to("nowhere")
    (root / "ant" / "self.png").symlink_to("self.png")
    (root / "bee" / "up").symlink_to("..")
    (root / "bee" / "zero.png").symlink_to("/dev/zero")
    (root / "bee" / "x.heic").write_bytes(b"")
    (root / "bee" / "y.HEIC").write_bytes(b"")
    (root / "bee" / "noending").write_bytes(b"")
    out = accepted(root)
    assert "4 special file or broken links (ant/gone.png …)" in out
    assert "1 link back to a folder above it (bee/up)" in out
    assert "2 .heic files (bee/x.heic …)" in out
    assert f"{'all':<6}" in out


@pytest.mark.parametrize("where", ["/dev/zero", "/dev/null", "nowhere", "pipe", "file.txt", "file.png", ""])
def test_roots_that_are_not_data(tmp_path, where):
    os.mkfifo(tmp_path / "pipe")
    for name in ("file.txt", "file.png"):
        (tmp_path / name).write_bytes(numbered_image(0))
    root = where if where.startswith("/") else tmp_path / where
    refused(root)


# --- tables


def table(root, text: str | bytes, name: str = "list.csv"):
    folder(root)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


GOOD = "ant/0.png,ant\nant/1.png,ant\nbee/0.png,bee\nbee/1.png,bee\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GOOD, "list.csv"),
        (GOOD, "DATA.CSV"),
        (GOOD.replace(",", "\t"), "list.tsv"),
        (GOOD.replace("\n", "\r\n"), "list.csv"),
        (GOOD.replace("\n", "\n\n"), "list.csv"),
        (b"\xef\xbb\xbf" + GOOD.encode(), "list.csv"),
        ("Path,Label\n" + GOOD, "list.csv"),
        ("filename,class\n" + GOOD, "list.csv"),
        ("id,label,file\n" + "".join(f"7,{b},{a}\n" for a, b in csv.reader(GOOD.splitlines())), "list.csv"),
        (GOOD.replace("ant/0.png", '"ant/0.png"'), "list.csv"),
        (GOOD.replace("ant/0.png", "./bee/../ant/0.png"), "list.csv"),
    ],
)
def test_right_tables(tmp_path, text, name):
    train, evaluation = opened(table(tmp_path / "set", text, name))
    both = [source[i] for source in (train, evaluation) for i in range(len(source))]
    assert train.class_names == ["ant", "bee"]
    found = sorted((os.path.basename(os.path.dirname(sample["name"])), sample["label"]) for sample in both)
    assert found == [("ant", 0)] * 2 + [("bee", 1)] * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("bee/1", "bee/9"), "line 4 names bee/9.png, which cannot be read"),
        (GOOD.replace("bee/1.png", "bee"), "line 4 names bee, which cannot be read"),
        (GOOD.replace("bee/1.png", "/dev/zero"), "which cannot be read"),
        (GOOD.replace("bee/1", "bee/\x001"), "which cannot be read"),
        (GOOD.encode("utf-16"), "is not text in UTF-8"),
        ("path,breed\n" + GOOD, "columns path, breed, none of which is called label"),
        ("image,ant,bee,cow\nant/0.png,1.0,0.0,0.0\n", "columns image, ant, bee, cow, none of which is called label"),
        (GOOD.replace("bee\n", "NaN\n"), "has the label NaN:"),
        ("ant/0.png,nan\nant/1.png,1.0\n", "has the label nan:"),
        ("ant/0.png,1\nant/1.png,0.0\n", "has the label 0.0: give every image a class name, or a whole number"),
        (GOOD.replace("bee\n", "bée\n").encode("latin-1"), "is not text in UTF-8"),
        (bytes(10_000), "it must be path,label"),
        (GOOD.replace(",", ";"), "line 1 is 'ant/0.png;ant': it must be path,label"),
        ("ant/0.png,0\nant/1.png,1\nbee/0.png,-1\n", "has the label -1"),
        ("ant/0.png,1\nant/1.png,01\n", "writes a number in two ways"),
        (GOOD + "x" * 200_000 + ",1\n", "field larger than field limit"),
        (GOOD + '"ant/0.png,ant\n', "line 5 is 'ant/0.png,ant'"),
        (GOOD.replace("\n", ",train\n") + "bee/1.png,bee,holdback\n", "'holdback', which is not a usual name"),
        (GOOD.replace("\n", ",train\n") + "bee/1.png,wasp,valid\n", "wasp is a class the training images lack"),
        (GOOD.replace("\n", ",test\n"), "has no images to train on"),
        (GOOD.replace("bee\n", "ant\n"), "a single class, ant"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path, text, says):
    assert says in refusal(table(tmp_path / "set", text))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "1", "0", "1"], ["0", "1"]),
        (["900", "7", "7", "900"], ["7", "900"]),
        (["00", "01", "00", "01"], ["00", "01"]),
        (["..", "/", "/", ".."], ["..", "/"]),
        (["ant", "-1", "-1", "ant"], ["-1", "ant"]),
    ],
)
def test_labels_of_tables(tmp_path, labels, names):
    paths = [line.split(",")[0] for line in GOOD.splitlines()]
    text = "".join(f"{path},{label}\n" for path, label in zip(paths, labels, strict=True))
    assert opened(table(tmp_path / "set", text))[0].class_names == names


@pytest.mark.parametrize("split", ["valid", "VAL", "Dev", "test", "validation"])
def test_splits_of_tables(tmp_path, split):
    text = GOOD.replace("\n", ",Train\n") + f"ant/0.png,ant,{split}\n"
    train, evaluation = opened(table(tmp_path / "set", text))
    assert (len(train), len(evaluation)) == (4, 1)
    for setting in ("train_split", "eval_split"):
        assert f"data.{setting} 'tain' is not a split" in refusal(tmp_path / "set" / "list.csv", **{setting: "tain"})


def test_a_file_that_vanishes_is_named(tmp_path):
    source = scan_folder(folder(tmp_path / "set"))
    (tmp_path / "set" / "bee" / "1.png").unlink()
    with pytest.raises(UserError, match=r"bee/1.png cannot be read \(No such file or directory\): restore it"):
        _ = source.fingerprint
