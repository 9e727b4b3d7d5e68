"""Folders, tables, shards and TFDS datasets on disk: what they hold, and what is said when they are wrong."""

import csv
import io
import pickle
import re
import sys

import numpy as np
import pytest
from helpers import devkit, numbered_image, opened, refusal, tar_of, tool
from PIL import Image

from deit_jax.classes.imagenet import synsets
from deit_jax.config import default_config
from deit_jax.data import images, shards, sources
from deit_jax.data.label_files import DEVKIT
from deit_jax.data.tools import doctor, prepare
from deit_jax.errors import UserError
from deit_jax.evaluate import test_sets as testsets
from examples import cifar10_folders


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4, 5 and 6 images, sorted otherwise than made."""
    for number, name in enumerate(("owl", "ant", "cat")):
        for i in range(4 + number):
            write(tmp_path / "set" / name / f"{i}.jpg", picture(10 * number + i))
    return tmp_path / "set"


def held(source) -> list[tuple[str, int]]:
    return [(source[i]["name"], source[i]["label"]) for i in range(len(source))]


def test_folder_without_splits_is_held_out_evenly(folder):
    train, evaluation = opened(folder, holdout=0.2)
    assert train.class_names == evaluation.class_names == ["ant", "cat", "owl"]
    assert (len(train), len(evaluation)) == (12, 3)
    assert sorted(label for _, label in held(evaluation)) == [0, 1, 2]
    everything = held(train) + held(evaluation)
    assert len(set(everything)) == 15
    for name, label in everything:
        assert f"/{train.class_names[label]}/" in name
    again = opened(folder, holdout=0.2)
    assert held(again[1]) == held(evaluation)


def test_folder_with_splits(folder, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    write(root / "special" / "owl" / "sub" / "x.PNG", picture(1, "PNG"))
    train, evaluation = opened(root, eval_split="special")
    assert (len(train), held(evaluation)[0][1]) == (15, 2)
    assert evaluation.class_names == train.class_names
    assert images.decode(evaluation[0]["image"]).shape == (20, 16, 3)
    assert len(opened(root, eval_split="holdout", holdout=0.2)[1]) == 3  # from the training images
    assert "--config.data.eval_split=special" in refusal(root)
    assert "data.eval_split 'specia' is not a split" in (message := refusal(root, eval_split="specia"))
    assert "did you mean special?" in message
    assert "data.train_split 'trian' is not a split" in refusal(root, train_split="trian")


def test_fingerprint_follows_the_images(folder):
    found = [opened(folder)[0].fingerprint]
    assert opened(folder)[0].fingerprint == found[0]
    write(folder / "ant" / "0.jpg", picture(99) + b"more")
    found.append(opened(folder)[0].fingerprint)
    for old, new in (("ant/0.jpg", "ant/00.jpg"), ("ant/00.jpg", "cat/00.jpg")):
        (folder / old).rename(folder / new)
        found.append(opened(folder)[0].fingerprint)
    assert len(set(found)) == 4


def test_limit_draws_by_seed(folder):
    assert "has no images to train on" in refusal(folder, holdout=1.0)
    config = default_config()
    config.data.root, config.data.limit = str(folder), 6
    drawn = []
    for seed in (0, 0, 1):
        config.seed = seed
        train, evaluation = sources.open_sources(config)
        assert len(train) == 6
        assert not set(held(train)) & set(held(evaluation))
        drawn.append(held(train))
    assert drawn[0] == drawn[1] != drawn[2]


def test_bad_folders(folder, tmp_path):
    assert "is not a folder" in refusal(tmp_path / "nowhere")
    assert "is not a folder: unpack it, or make shards of it" in refusal(tmp_path / "photos.tar.gz")


def test_class_count_must_be_the_models(folder):
    config = default_config()
    config.data.root, config.model.num_classes = str(folder), 4
    with pytest.raises(UserError, match=r"model.num_classes is 4 but .* has 3 classes"):
        sources.open_sources(config)


def test_unknown_dataset_names_the_nearest():
    assert "did you mean digits?" in refusal(name="digit")
    assert "did you mean cifar100?" in refusal(name="cifar1000")


def test_digits_are_split_evenly_and_exactly():
    train, evaluation = opened(name="digits")
    assert (len(train), len(evaluation), train.num_classes) == (1438, 359, 10)
    counts = np.bincount([label for _, label in held(evaluation)])
    assert counts.min() >= 34
    assert counts.max() <= 37
    scans = np.stack([train[i]["image"] for i in range(len(train))])
    assert scans.shape[1:] == (8, 8)
    assert scans.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(scans), np.round(np.arange(17) * 255 / 16))  # 17 greys, black to white
    assert train.fingerprint != evaluation.fingerprint
    for setting, value in (("train_split", "test"), ("eval_split", "test"), ("holdout", 0.3)):
        assert refusal(name="digits", **{setting: value}).startswith("of digits a fifth is held out: leave")


def table(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


# --- shards


def by_hash(source) -> list[tuple[int, bytes]]:
    return sorted((source[i]["label"], source[i]["image"]) for i in range(len(source)))


@pytest.fixture
def split_folder(folder, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    for name in ("owl", "cat"):
        write(root / "val" / name / "v.png", picture(ord(name[0]), "PNG"))
    return root


def test_shards_are_cut_and_resumed(split_folder, tmp_path, monkeypatch):
    prepare.prepare(split_folder, tmp_path / "whole")
    target, pack, packed = tmp_path / "shards", shards.pack, []

    def interrupted(*image):
        packed.append(image)
        if len(packed) == 10:
            raise KeyboardInterrupt
        return pack(*image)

    monkeypatch.setattr(shards, "pack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(split_folder, target, shard_megabytes=0.005)
    monkeypatch.undo()
    assert "is not finished" in refusal(target)
    kept = {path.name: path.stat().st_mtime_ns for path in target.glob("train*record")}
    assert kept
    index = prepare.prepare(split_folder, target, shard_megabytes=0.005)
    assert {name: (target / name).stat().st_mtime_ns for name in kept} == kept
    counts = [shard["records"] for shard in index["splits"]["train"]]
    assert sum(counts) == 15
    assert max(counts) - min(counts) <= 1 < len(counts)
    assert by_hash(opened(target)[0]) == by_hash(opened(tmp_path / "whole")[0])
    assert not list(target.glob("*.partial"))


def test_a_spoiled_shard_is_made_again_and_one_of_other_images_left_alone(split_folder, tmp_path):
    target = tmp_path / "shards"
    index = prepare.prepare(split_folder, target)
    path = target / index["splits"]["train"][0]["file"]
    good = path.read_bytes()
    path.write_bytes(good[:5000] + b"\0" * 8 + good[5008:])
    prepare.prepare(split_folder, target)
    assert path.read_bytes() == good
    write(split_folder / "train" / "owl" / "new.jpg", picture(5))
    with pytest.raises(UserError, match="was made from other images"):
        prepare.prepare(split_folder, target)


def test_damaged_shards(split_folder, tmp_path):
    target = tmp_path / "shards"
    index = prepare.prepare(split_folder, target)
    path = target / index["splits"]["train"][0]["file"]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert f"shard {path} has {len(data) // 2} bytes instead of {len(data)}" in refusal(target)
    path.unlink()
    assert f"shard {path} has 0 bytes" in refusal(target)
    path.write_bytes(data)
    assert "data.train_split 'trains' is not a split" in refusal(target, train_split="trains")
    (target / shards.INDEX).write_text("{")
    assert "is damaged" in refusal(target)


def test_a_spoiled_record_is_a_broken_image(split_folder, tmp_path):
    target = tmp_path / "shards"
    index = prepare.prepare(split_folder, target)
    path = target / index["splits"]["train"][0]["file"]
    data = bytearray(path.read_bytes())
    where = data.index(opened(target)[0][7]["image"])
    data[where + 30 : where + 60] = bytes(30)
    path.write_bytes(data)
    source = opened(target)[0]
    with pytest.raises(OSError, match="record 7 of"):
        source[7]
    assert source[8]["image"][:2] == b"\xff\xd8"


def imagenet(root):
    """The three files ImageNet comes as, with two classes; the kit numbers classes otherwise than their names sort."""
    root.mkdir()
    wnids, inner = ("n02", "n01"), {}
    for number, wnid in enumerate(wnids):
        pictures = {f"{wnid}_{i}.JPEG": picture(10 * number + i) for i in range(3)}
        tar_of(root / "inner", pictures)
        inner[f"{wnid}.tar"] = (root / "inner").read_bytes()
    (root / "inner").unlink()
    tar_of(root / "ILSVRC2012_img_train.tar", inner)
    truth = [1, 2, 2, 1]
    pictures = {f"ILSVRC2012_val_{i:08}.JPEG": picture(100 + i) for i in range(1, 5)}
    tar_of(root / "ILSVRC2012_img_val.tar", pictures)
    tar_of(root / DEVKIT, devkit({1: "n02", 2: "n01", 3: "n00"}, truth), "w:gz")
    return [wnids[number - 1] for number in truth]


def test_imagenet_as_it_comes(tmp_path):
    truth = imagenet(tmp_path / "files")
    prepare.prepare(tmp_path / "files", tmp_path / "shards")
    train, evaluation = opened(tmp_path / "shards")
    assert train.class_names == ["n01", "n02"]
    assert by_hash(train) == sorted([(1, picture(i)) for i in range(3)] + [(0, picture(10 + i)) for i in range(3)])
    expected = [(train.class_names.index(wnid), picture(100 + i)) for i, wnid in enumerate(truth, 1)]
    assert by_hash(evaluation) == sorted(expected)


def test_validation_images_need_their_classes(tmp_path):
    truth = imagenet(tmp_path / "files")
    (tmp_path / "files" / DEVKIT).unlink()
    with pytest.raises(UserError, match="without a class folder need"):
        prepare.prepare(tmp_path / "files", tmp_path / "shards")
    rows = [(f"ILSVRC2012_val_{i:08}.JPEG", wnid) for i, wnid in enumerate(truth, 1)]
    short = table(tmp_path / "short.csv", rows[:-1])
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000004.JPEG, whose class is not listed"):
        prepare.prepare(tmp_path / "files", tmp_path / "shards", labels=str(short))
    prepare.prepare(tmp_path / "files", tmp_path / "shards", labels=str(table(tmp_path / "all.csv", rows)))
    assert len(opened(tmp_path / "shards")[1]) == 4


def test_bad_sources_of_prepare(tmp_path):
    with pytest.raises(UserError, match=r"neither a folder nor a \.tar file"):
        prepare.prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    tar_of(tmp_path / "a.tar.gz", {"a/1.png": numbered_image(0), "b/1.png": numbered_image(1)}, "w:gz")
    for name in ("a.tar", "a.tar.gz"):
        with pytest.raises(UserError, match=rf"{name} is damaged, compressed or not a .tar file .*: unpack it"):
            prepare.prepare(tmp_path / name, tmp_path / "out")
    tar_of(tmp_path / "b.tar", {"x/readme.txt": b""})
    with pytest.raises(UserError, match="hold no image"):
        prepare.prepare(tmp_path / "b.tar", tmp_path / "out")


# --- the doctor


def test_doctor_finds_broken_and_repeated_files(split_folder):
    train = split_folder / "train"
    (train / "ant" / "1.jpg").write_bytes(picture(11)[:200])
    (train / "owl" / "copy.jpg").write_bytes((train / "cat" / "2.jpg").read_bytes())
    (split_folder / "val" / "cat" / "leak.jpg").write_bytes((train / "cat" / "3.jpg").read_bytes())
    both = opened(split_folder)
    text, code = doctor.examine(dict(zip(("train", "evaluation"), both, strict=True)))
    assert code == 1
    rows = [line.split()[1:] for line in text.splitlines()[1:4]]
    assert rows == [["ant", "5", "0"], ["cat", "6", "2"], ["owl", "5", "1"]]
    assert re.search(r"unreadable images: 1\n  .*ant/1.jpg", text)
    assert re.search(r"cat/2.jpg = .*owl/copy.jpg", text)
    assert "classes without an image in evaluation: 1" in text
    assert (
        "files that occur more than once: 2, 1 of them in different classes, 1 both in training and evaluation" in text
    )


def test_the_tools_on_the_command_line(split_folder, tmp_path):
    target = tmp_path / "shards"
    done = tool("data.tools.prepare", split_folder, target)
    assert done.code == 0, done.err
    assert done.out == "train: 15 images in 1 shards, 3 classes\nval: 2 images in 1 shards, 3 classes\n"
    healthy = tool("data.tools.doctor", target)
    assert "unreadable images: 0" in healthy.out
    (split_folder / "train" / "ant" / "1.jpg").write_bytes(b"no image")
    ill = tool("data.tools.doctor", split_folder)
    assert "ant/1.jpg (cannot identify image file" in ill.out
    assert (healthy.code, ill.code) == (0, 1)
    done = tool("data.tools.prepare", tmp_path / "nowhere", target)
    assert (done.code, done.err.count("\n"), done.err[:7]) == (2, 1, "error: ")


# --- TFDS


def write_tfds(name: str, data_dir, splits: dict[str, int]):
    """A small dataset in TFDS's own files, written by TFDS with the features of the real one."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    kind = "PNG" if name.startswith("cifar") else "JPEG"

    def value(key, feature, i):
        match type(feature).__name__:
            case "Image":
                mask = key == "segmentation_mask"
                return io.BytesIO(numbered_image(0) if mask else picture(i, kind, (32, 32)))
            case "ClassLabel":
                return (3 * i) % feature.num_classes
            case "Text":
                return f"{i}.jpg"
            case "BBoxFeature":
                return tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
            case "Sequence":
                return list(range(i % 3))

    def generate(count):
        for i in range(count):
            yield i, {key: value(key, feature, i) for key, feature in builder.info.features.items()}

    builder._split_generators = lambda *_: {split: generate(count) for split, count in splits.items()}
    builder.download_and_prepare()


def number(sample) -> int:
    return int(sample["name"].rsplit("/", 1)[1].removesuffix(".jpg"))


# one of each kind of features and splits
DATASETS = {
    "imagenet2012": (1000, {"train": 4, "validation": 5}),
    "imagenet2012_real": (1000, {"validation": 5}),
    "imagenet_sketch": (1000, {"test": 5}),
    "cifar10": (10, {"train": 4, "test": 5}),
    "oxford_flowers102": (102, {"train": 4, "validation": 5, "test": 6}),
    "cars196": (196, {"train": 4, "test": 5}),
    "oxford_iiit_pet": (37, {"train": 4, "test": 5}),
}


@pytest.mark.parametrize("name", DATASETS)
def test_tfds_datasets(name, tmp_path):
    classes, splits = DATASETS[name]
    write_tfds(name, tmp_path, splits)
    config = default_config()
    config.data.name, config.data.root = name, str(tmp_path)
    evaluation = sources.find_sources(config)[1]
    found = [evaluation]
    if "train" in splits:
        found = list(sources.open_sources(config))
        assert len(found[0]) == 4
        assert found[0].fingerprint != evaluation.fingerprint
    else:
        with pytest.raises(UserError, match="has no images to train on"):
            sources.open_sources(config)
    assert len(evaluation) == 5
    for source in found:
        assert source.num_classes == len(source.class_names) == classes
        seen = set()
        for sample in (source[i] for i in range(len(source))):
            i = number(sample)
            seen.add(i)
            assert sample["image"] == picture(i, "PNG" if name.startswith("cifar") else "JPEG", (32, 32))
            assert sample["label"] == (3 * i) % classes
            if name == "imagenet2012_real":
                assert sample["labels"].tolist() == list(range(i % 3))
        assert seen == set(range(len(source)))
        copy = pickle.loads(pickle.dumps(source))
        assert copy[1]["image"] == source[1]["image"]


def test_tfds_as_a_set_to_evaluate_on(tmp_path):
    """Its metadata name 1000 classes, the images are of five; several right labels become a model's outputs."""
    write_tfds("imagenet_a", tmp_path, {"test": 5})
    one = testsets.open_eval_set(f"imagenet_a={tmp_path}")
    assert len(one.source) == 5
    assert testsets.present_classes(one.source).tolist() == [0, 3, 6, 9, 12]
    backwards = synsets()[::-1]
    classes, mapped = testsets.match_source(one.source, backwards, 1000)
    assert sorted(mapped[i]["label"] for i in range(5)) == [987, 990, 993, 996, 999]
    assert classes.describe() == "5 of the weights' 1000 classes, matched by class names"
    write_tfds("imagenet2012_real", tmp_path, {"validation": 5})
    real = testsets.open_eval_set(f"imagenet2012_real={tmp_path}")
    _, mapped = testsets.match_source(real.source, backwards, 1000)
    several = {number(mapped[i]): mapped[i]["labels"].tolist() for i in range(5)}
    assert several == {0: [], 1: [999], 2: [999, 998], 3: [], 4: [999]}


def test_tfds_splits_and_complaints(tmp_path):
    write_tfds("cifar10", tmp_path, {"train": 10, "test": 5})
    train, evaluation = opened(tmp_path, name="cifar10", train_split="train[:60%]+test", eval_split="train[60%:]")
    assert (len(train), len(evaluation)) == (11, 4)
    message = refusal(tmp_path, name="cifar10", eval_split="tests")
    assert "'tests' is not a split of cifar10 (did you mean test?)" in message
    train, evaluation = opened(tmp_path, name="cifar10", eval_split="holdout", holdout=0.3)
    assert (len(train), len(evaluation)) == (7, 3)
    version = next((tmp_path / "cifar10").iterdir())
    assert len(opened(version, name="cifar10")[0]) == 10  # the dataset's own folder will do as well
    shard = next(version.glob("*test*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "split 'test' of cifar10 cannot be read" in refusal(tmp_path, name="cifar10")
    shard.unlink()
    assert "split 'test' of cifar10 cannot be read" in refusal(tmp_path, name="cifar10")


def test_tfds_not_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    message = refusal(name="cifar10")
    assert "of cifar10 cannot be read in" in message
    assert "a folder per class, as data.root" in message  # TFDS itself can prepare it with TensorFlow only
    assert "tfds build cifar10 --file_format=array_record" in message
    assert "deit-jax prepare FOLDER DST" in refusal(name="imagenet2012")


def test_the_cifar10_study_has_training_held_out_and_test_images_apart(tmp_path):
    for path in (f"{split}/{c}/{i}.png" for split, n in (("train", 7), ("test", 2)) for c in "ab" for i in range(n)):
        write(tmp_path / "all" / path, numbered_image(int(path[-5])))
    made = cifar10_folders.link(tmp_path / "all", tmp_path / "data", train=4, holdout=3)
    assert made == {"train": 8, "holdout": 6, "test": 4}
    train, held = opened(tmp_path / "data", eval_split="holdout")
    assert (len(train), len(held)) == (8, 6)
    assert [{s[i]["image"][-1] for i in range(len(s))} for s in (train, held)] == [{0, 1, 2, 3}, {4, 5, 6}]
    with pytest.raises(SystemExit, match="has 7 images: 5"):
        cifar10_folders.link(tmp_path / "all", tmp_path / "more", train=5, holdout=3)


def test_digits_without_their_package_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="data.name 'digits' needs scikit-learn .* pip install scikit-learn"):
        sources.open_digits()


def test_data_of_ones_own_is_what_a_function_returns():
    train, evaluation = opened(name="examples.own_data:stripes")
    assert (len(train), len(evaluation), train.class_names) == (512, 128, ["across", "upright"])
    assert train.fingerprint != evaluation.fingerprint
    assert train[3]["image"].shape == (16, 16)
    assert "has no 'stripe' (did you mean stripes?)" in refusal(name="examples.own_data:stripe")
    assert "returns module: return two sources" in refusal(name="examples.own_data:np")
