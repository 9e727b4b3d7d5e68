"""Each layout in which people have the test sets gives the right labels: a model that knows the answer scores 100 %."""

import csv
import json
import tarfile

import numpy as np
import oracle
import pytest
from helpers import devkit, state_of, tar_of
from safetensors.numpy import save_file

from deit_jax import load_model
from deit_jax.augment import normalize
from deit_jax.classes import imagenet
from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config, resolve
from deit_jax.errors import UserError
from deit_jax.evaluate.evaluation_command import Request, default_eval_set, evaluate_command, target_settings

SYNSETS = imagenet.synsets()
SHOWN = [3, 999, 10, 2, 100, 641]  # classes whose order as text, as numbers and as devkit ids differs
EXPLICIT = {"data.crop": 1.0, "batch_size": 64}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def weights(root):
    return oracle.save_oracle(root / f"{oracle.NAME}.safetensors", 1000)


def val_name(i: int) -> str:
    return f"ILSVRC2012_val_{i + 1:08}.JPEG"


def make_layouts(root) -> dict[str, str]:
    """{name of a layout: its --data}"""
    for number in range(1000):
        oracle.save_image(root / "v2" / str(number) / "a.jpeg", number)
    for i, number in enumerate(SHOWN):
        oracle.save_image(root / "flat" / val_name(i), number)
        oracle.save_image(root / "synsets" / "val" / SYNSETS[number] / val_name(i), number)
        oracle.save_image(root / "synsets" / "train" / SYNSETS[number] / "0.JPEG", number + 1)  # never looked at
        oracle.save_image(root / "names" / imagenet.class_names()[number].replace(" ", "_") / "0.png", number)
    ids = np.random.default_rng(0).permutation(1000) + 1  # in another order than the models' outputs
    kit = devkit({**dict(zip(ids, SYNSETS, strict=True)), 1001: "n0"}, [ids[c] for c in SHOWN])
    with tarfile.open(tar_of(root / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")) as tar:
        tar.extractall(root, filter="data")
    rows = [(val_name(i), SYNSETS[number]) for i, number in enumerate(SHOWN)]
    for name, lines in {
        "names.csv": [("name", "class"), *rows],
        "kaggle.csv": [("ImageId", "PredictionString"), *((n[:-5], f"{s} 1 2 3 4 {s} 5 6 7 8 ") for n, s in rows)],
    }.items():
        with open(root / name, "w", newline="") as file:
            csv.writer(file).writerows(lines)
    with open(root / "flat" / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((name, SHOWN[i]) for i, (name, _) in enumerate(rows))])
    return {
        "v2": f"{root}/v2",
        "split": f"{root}/synsets",
        "synsets": f"{root}/synsets/val",
        "names": f"{root}/names",
        "kit": f"{root}/flat,labels={root}/kit",
        "packed": f"{root}/flat,labels={root}/ILSVRC2012_devkit_t12.tar.gz",
        "csv": f"{root}/flat,labels={root}/names.csv",
        "kaggle": f"{root}/flat,labels={root}/kaggle.csv",
        "table": f"{root}/flat/table.csv",
    }


def run(weights, *data: str, explicit=None, **request):
    given = EXPLICIT | (explicit or {})
    config = default_config()
    config.update_from_flattened_dict(given)
    return evaluate_command(config, given, Request((str(weights),), data, **request))


def test_every_layout_gives_the_right_labels(root, weights, tmp_path, capsys):
    layouts = make_layouts(root)
    found = run(weights, *(f"{name}={where}" for name, where in layouts.items()), output=str(tmp_path / "out"))
    (row,) = found["rows"]
    assert {name: result["top1"] for name, result in row["results"].items()} == dict.fromkeys(layouts, 100.0)
    assert {result["images"] for name, result in row["results"].items() if name != "v2"} == {6}
    whole = row["results"]["v2"]
    assert (whole["images"], whole["classes"], whole["matched_by"]) == (1000, 1000, "ImageNet's class numbers")
    assert "split: 6 images of 6 of the weights' 1000 classes, matched by WordNet ids" in capsys.readouterr().out

    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["rows"][0]["results"]["kit"]["top1"] == 100
    assert written["rows"][0]["parameters"] == row["parameters"]
    assert f"| {oracle.NAME} | {weights} |" in (tmp_path / "out" / "evaluation.md").read_text()
    with pytest.raises(UserError, match="holds evaluation.md of an earlier evaluation"):
        run(weights, f"{root}/flat/table.csv", output=str(tmp_path / "out"))


def test_real_is_counted_by_hand(tmp_path, weights):
    """Eight images: the first class is among the right ones of three, not among those of two, three have none."""
    right = [[3, 5], [], [7, 10], [6], [], [641, 2], [1, 2], []]
    for i in range(8):
        oracle.save_image(tmp_path / "val" / val_name(i), [3, 4, 10, 2, 4, 641, 100, 4][i])
    (tmp_path / "real.json").write_text(json.dumps(right))
    result = run(weights, f"real={tmp_path}/val,labels={tmp_path}/real.json")["rows"][0]["results"]["real"]
    assert (result["images"], result["top1"]) == (5, 60.0)


def test_a_subset_of_the_classes_is_scored_among_these(tmp_path, weights):
    """Images of classes 3, 10 and 2 of which one lies in the folder of another, and one shows a fourth class."""
    shown = {3: [3, 3], 10: [10, 2], 2: [2, 999]}
    for number, images in shown.items():
        for i, image in enumerate(images):
            oracle.save_image(tmp_path / SYNSETS[number] / f"{i}.png", image)
    result = run(weights, f"r={tmp_path}")["rows"][0]["results"]["r"]
    images = np.stack([oracle.image_of(image) for images in shown.values() for image in images])
    logits = np.asarray(load_model(weights)(normalize(images, IMAGENET_MEAN, IMAGENET_STD)))[:, list(shown)]
    by_hand = (logits.argmax(1) == [0, 0, 1, 1, 2, 2]).mean()
    assert result["top1"] == pytest.approx(100 * by_hand)
    assert (result["images"], result["classes"], result["outputs"]) == (6, 3, 1000)


def test_bad_input_is_refused_before_anything_is_compiled(tmp_path, weights, monkeypatch):
    """Also of the second weights, before the first are evaluated."""
    monkeypatch.setattr("deit_jax.evaluate.evaluation_command.make_classifier", None)
    for name in ("cats", "dogs", "emus", "foxes"):
        oracle.save_image(tmp_path / "mine" / name / "0.png", 0)
    oracle.save_image(tmp_path / "known" / SYNSETS[3] / "0.png", 3)
    save_file(state_of(oracle.NAME, num_classes=3), small := tmp_path / f"{oracle.NAME}-small.safetensors")
    mine, missing = f"x={tmp_path / 'mine'}", tmp_path / "none"
    cases = [
        ((weights, mine), {}, "4 of the 4 classes of x are not classes of .*: 'cats', 'dogs', 'emus'"),
        ((small, mine), {}, "x has 4 classes .'cats', 'dogs', 'emus' and 1 more., .* have 3 and do not name them"),
        ((f"{weights},{small}", f"x={tmp_path / 'known'}"), {}, "have 3 and do not name them"),
        ((weights, mine, mine), {}, "names two sets 'x'"),
        ((weights, f"x={missing}"), {}, "none does not exist"),
        ((weights,), {}, "no data: give --data="),
        (("",), {}, "nothing to evaluate"),
        (("",), {"workdir": str(missing)}, "holds no checkpoint"),
        ((weights, mine), {"kind": "avg"}, "weights 'avg' are not known: use params or ema"),
        ((weights, mine), {"explicit": {"data.crop": 0.0}}, "data.crop is 0"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(UserError, match=message):
            run(*arguments, **options)


def test_without_data_the_images_that_training_holds_out_are_taken(tmp_path):
    for name in ("2", "10"):
        for i in range(10):
            oracle.save_image(tmp_path / "data" / name / f"{i}.png", i)
    config = default_config()
    config.data.root = str(tmp_path / "data")
    own = default_eval_set(resolve(config))
    assert (own.name, len(own.source)) == ("data", 2)
    assert "held out of the training images" in own.note
    oracle.save_image(tmp_path / "split" / "val" / "2" / "0.png", 0)
    for name in ("2", "10"):
        oracle.save_image(tmp_path / "split" / "train" / name / "0.png", 0)
    config.data.root = str(tmp_path / "split")
    whole = default_eval_set(resolve(config))
    assert (len(whole.source), whole.note) == (1, "")


def test_settings_are_the_runs_unless_given(tmp_path):
    data = {"crop": 0.9, "name": "digits", "eval_batch_size": 48}
    recorded = {"data": data, "evaluate": {"fusion": "probabilities"}}
    meta = tmp_path / "run" / "checkpoints" / "5" / "meta"
    for folder in (meta, meta.parent / "params"):
        folder.mkdir(parents=True)
    (meta / "metadata").write_text(json.dumps({"config": recorded}))
    ours = target_settings(default_config(), {}, str(tmp_path / "run"))
    assert (ours.data.crop, ours.data.name, ours.batch_size) == (0.9, "digits", 48)
    assert ours.evaluate.fusion == "probabilities"
    given = target_settings(default_config(), {"data.crop": 1.0, "data.eval_batch_size": 8}, str(tmp_path / "run"))
    assert (given.data.crop, given.batch_size) == (1.0, 8)
    other = target_settings(default_config(), {}, "a/hub")
    assert (other.data.name, other.evaluate.fusion, other.batch_size) == ("imagenet2012", "logits", 256)
