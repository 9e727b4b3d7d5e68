"""One reader of layouts: the same classes, counts and splits from a folder, a tar file of it, and its shards."""

import json
import random
import tarfile

import pytest
from helpers import held, numbered_image, opened, refusal, tar_of

from deit_jax.data import base
from deit_jax.data.tools import prepare
from deit_jax.errors import UserError


def make(root, paths):
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(numbered_image(number) if "." in path else b"")
    return root


def generated(seed: int) -> list[str]:
    """The files of a random data set: classes of several kinds of names, with or without splits, and what else lies in
    such folders."""
    rng = random.Random(seed)
    kind = rng.choice(["words", "numbers", "odd"])
    names = {
        "words": ["ant", "bee", "Cat", "dog", "elk"],
        "numbers": ["0", "1", "2", "10", "007"],
        "odd": ["a b", "ü$_^", "-x", "train", "n.jpg"],
    }[kind][: rng.randint(2, 5)]
    if kind == "odd" and len(names) < 4:
        names += ["train", "zz"]
    splits = [[], ["train", "val"], ["Training", "Validation", "test"], ["TRAIN", "dev"], ["train", "valid"], ["train"]]
    splits = rng.choice(splits)
    paths = []
    for split in splits or [""]:
        for name in names if split.lower() in ("", "train", "training") else names[: rng.randint(1, len(names))]:
            for i in range(rng.randint(1, 4) if split else rng.randint(2, 5)):
                inside = rng.choice(["", "", "sub/", "x/y/"])
                ending = rng.choice([".png", ".JPG", ".jfif", ".Jpeg", ".webp"])
                paths.append("/".join(filter(None, [split, name, f"{inside}{i}{ending}"])))
            paths += rng.choice([[], [f"{split}/{name}/notes.txt".lstrip("/"), f"{split}/{name}/._0.png".lstrip("/")]])
    return paths + rng.choice([[], ["README.md", ".DS_Store.png"], ["__MACOSX/ant/0.png"]])


@pytest.mark.parametrize("seed", range(40))
def test_folder_tar_and_shards_hold_the_same(seed, tmp_path):
    root = make(tmp_path / "set", generated(seed))
    rng = random.Random(seed)
    inner = sorted(path for path in root.rglob("*.*") if path.is_file() and path.parent.name != "__MACOSX")
    target = rng.choice([path for path in inner if not path.name.startswith(".") and path.parent != root])
    (target.parent / "copy.png").write_bytes(target.read_bytes())
    (target.parent / "gone.png").symlink_to("nowhere.png")
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(root, arcname=rng.choice([".", "set", "a/b/set"]))
    ours = opened(root, holdout=0.3)
    for source in (root, packed):
        shards = tmp_path / f"shards_{source.name}"
        prepare.prepare(source, shards)
        theirs = opened(shards, holdout=0.3)
        assert ours[0].class_names == theirs[0].class_names
        for mine, other in zip(ours, theirs, strict=True):
            assert held(mine) == held(other)
    assert any("gone.png" in note for note in ours[0].notes)


def test_validation_comes_before_test_and_what_is_not_used_is_said(tmp_path):
    make(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/2.png", "val/b/3.png", "extra/a/9.png", "train/x.heic"])
    train, evaluation = opened(tmp_path)
    assert evaluation[0]["label"] == 1
    (line,) = base.summary(train, evaluation)[2:]
    assert line == "not used: folder test (1 images), folder extra (1 images), 1 .heic file (train/x.heic)"
    assert len(opened(tmp_path, eval_split="test")[1]) == 1
    assert len(opened(tmp_path, eval_split="extra")[1]) == 1


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["set/a/1.png", "set/b/1.png"], "a single folder, set: give"),
        (["set/train/a/1.png", "set/val/a/1.png"], "a single folder, set: give"),
        (["a/1.png", "a/2.png"], "a single folder, a: give"),
        (["train/a/1.png", "val/a/1.png"], "single class, a"),
        (["train/1.png", "val/2.png"], "images directly in train (1 images), val (1 images)"),
        (["Train/1.png", "Val/2.png"], "images directly in Train (1 images)"),
        (["cat/1.png", "dog/1.png", "test/1.png"], "images directly in test"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "test has images but no class folders"),
        (["train/a/1.png", "train/b/1.png", "cat/1.png"], "split folders (train) beside class folders (cat)"),
        (["a/train/1.png", "a/val/1.png", "b/train/1.png"], "hold train, val: splits come first"),
        (["val/a/1.png", "val/b/1.png"], "has no images to train on"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], "c is a class the training images lack"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "validation/a/1.png"], "are all names of the validation"),
        (["a/1.png", "b/1.png", "c/readme.txt"], "class folder"),
        (["1.png", "2.png"], "2 images but no class folders"),
        (["a/x.txt"], "no class folders"),
        (["a/1.png", "b/1.png"], "leaves a class without a training image"),
        ([f"set{s}/{c}/1.png" for s in "AB" for c in "xy"], "all hold folders x, y: if those are the classes"),
    ],
)
def test_what_is_neither_layout_is_an_error_that_shows_what_was_found(tmp_path, paths, says):
    assert says in refusal(make(tmp_path, paths))


@pytest.mark.parametrize("names", [("train", "tulip", "turtle"), tuple(map(str, range(11)))])
def test_classes_stand_in_their_order(tmp_path, names):
    """`train` among other classes is a class; numbers are in numeric order."""
    make(tmp_path, [f"{name}/{i}.png" for name in names for i in range(3)])
    train, _ = opened(tmp_path)
    assert train.class_names == list(names)
    for i in range(len(train)):
        assert train[i]["name"].split("/")[-2] == names[train[i]["label"]]


SETS = [f"set{s}/{name}/{i}.png" for s in "AB" for name in "xy" for i in range(2)]


def test_sub_folders_of_classes_on_demand(tmp_path):
    root = make(tmp_path / "set", SETS)
    prepare.prepare(root, tmp_path / "shards", layout="classes")
    for where, layout in ((root, "classes"), (tmp_path / "shards", "auto")):
        both = opened(where, layout=layout, holdout=0.3)
        assert both[0].class_names == ["setA", "setB"]
        assert [len(source) for source in both] == [6, 2]


def as_table(root):
    """The table beside the folders of ROOT/SPLIT/CLASS, with the splits' names as they are."""
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    (root / "t.csv").write_text("".join(f"{path},{path.parts[1]},{path.parts[0]}\n" for path in paths))
    return root / "t.csv"


def as_tar(root):
    with tarfile.open(root.with_suffix(".tar"), "w") as tar:
        tar.add(root, arcname=".")
    return root.with_suffix(".tar")


def as_shards(source):
    prepare.prepare(source, source.with_suffix(".shards"))
    return source.with_suffix(".shards")


SOURCES = {
    "folder": lambda root: root,
    "table": as_table,
    "shards": lambda root: as_shards(as_tar(root)),
}


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "dev")])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_class_without_training_images_is_refused(tmp_path, kind, train, val):
    paths = [f"{train}/{c}/{i}.png" for c in "ab" for i in range(2)] + [f"{val}/a/1.png", f"{val}/c/1.png"]
    with pytest.raises(UserError, match="c is a class the training images lack"):
        opened(SOURCES[kind](make(tmp_path / "set", paths)))


def test_home_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "set", [f"{split}/{c}/{i}.png" for split in ("train", "val") for c in "ab" for i in range(2)])
    as_table(tmp_path / "set"), as_tar(tmp_path / "set")
    prepare.prepare("~/set.tar", "~/shards")
    for root in ("~/set", "~/set/t.csv", "~/shards"):
        assert [len(source) for source in opened(root)] == [4, 4]
    assert not (tmp_path / "~").exists()


def test_nothing_is_held_out_on_demand(tmp_path):
    both = opened(make(tmp_path, ["a/1.png", "b/1.png", "b/2.png"]), holdout=0.0)
    assert [len(source) for source in both] == [3, 3]
    assert any("none are held out" in line for line in base.summary(*both))


# --- tar files


def test_tars_by_split_and_by_class(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("x_train.tar", "x-valset.tar"):
        tar_of(tmp_path / "set" / name, {"x/a/1.png": numbered_image(len(name)), "x/b/1.png": numbered_image(3)})
    splits = prepare.prepare(tmp_path / "set", tmp_path / "out")["splits"]
    assert {split: sum(s["records"] for s in made) for split, made in splits.items()} == {"train": 2, "validation": 2}
    (tmp_path / "byclass").mkdir()
    for name in ("cat", "dog"):
        tar_of(tmp_path / "byclass" / f"{name}.tar", {f"{name}/1.png": name.encode()})
    assert prepare.prepare(tmp_path / "byclass", tmp_path / "out2")["classes"] == ["cat", "dog"]


@pytest.mark.parametrize("form", ["cls", "json"])
def test_a_web_dataset_is_read(tmp_path, form):
    (tmp_path / "set").mkdir()
    for split, count in (("train", 6), ("val", 3)):
        members = {f"s{i:03}.png": numbered_image(i) for i in range(count)}
        text = lambda i: f"{i % 3}\n" if form == "cls" else json.dumps({"label": i % 3, "width": 1})
        members |= {f"s{i:03}.{form}": text(i).encode() for i in range(count)}
        tar_of(tmp_path / "set" / f"digits-{split}-000000.tar", dict(sorted(members.items())))
    prepare.prepare(tmp_path / "set", tmp_path / "out")
    train, evaluation = opened(tmp_path / "out")
    assert train.class_names == ["0", "1", "2"]
    assert held(train) == sorted((str(i % 3), numbered_image(i)) for i in range(6))
    assert held(evaluation) == sorted((str(i % 3), numbered_image(i)) for i in range(3))
    tar_of(tmp_path / "lacks.tar", {"a.png": numbered_image(0), "a.cls": b"1", "b.png": numbered_image(1)})
    with pytest.raises(UserError, match="holds b.png without a label: add .cls"):
        prepare.prepare(tmp_path / "lacks.tar", tmp_path / "no")
