"""Every command where people run it: paths with `~`, a terminal that has ASCII alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY, folder_of_images, save_weights

from deit_jax.config import IMAGENET_MEAN, IMAGENET_STD

WEIGHTS = f"~/{TINY}.safetensors"
TRAIN = (
    f"--config=~/config.py --config.data.root=~/photos --config.model.name={TINY} --config.batch_size=8"
    f" --config.steps=2 --config.log.tensorboard=False --config.augment.policy=none --config.teacher.name={TINY}"
    " --config.distill.kind=hard"
).split()
TAUGHT = [*TRAIN, "--config.distill.labels=~/labels"]
COMMANDS = [  # arguments, and a file that the command writes
    (["--help"], ""),
    (["config"], ""),
    (["doctor", "~/photos"], ""),
    (["prepare", "~/photos", "~/shards"], "shards/dataset.json"),
    (["convert", WEIGHTS, "~/converted.safetensors"], "converted.safetensors"),
    (["label", *TRAIN, f"--config.teacher.init={WEIGHTS}", "--workdir=~/labels"], "labels/labels.json"),
    (["train", *TAUGHT, f"--config.init={WEIGHTS}", "--workdir=~/run"], "run/report.md"),
    (["evaluate", "--checkpoint=~/run", "--data=mine=~/photos", "--output=~/found"], "found/evaluation.md"),
    (["predict", "~/run", "~/photos/val", "--output=~/rows.csv", "--attention=~/attention.png"], "rows.csv"),
    (["show", *TAUGHT, "--output=~/batch.png"], "batch.png"),
    (["plan", *TAUGHT], ""),
    (["check", "~/run"], ""),
]
PROGRAM = """
import json, sys
import helpers  # the small models
from deit_jax.__main__ import main

for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""


@pytest.mark.slow
def test_every_command_in_an_ascii_terminal(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    for split in ("train", "val"):
        folder_of_images(home / "photos" / split)
        (home / "photos" / split / "class1").rename(home / "photos" / split / "café")
    (home / "config.py").write_text("from configs.deit_ti import get_config  # noqa: F401\n")
    save_weights(home / Path(WEIGHTS).name, TINY, ["café", "class0"], {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | plain | {"HOME": str(home), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", PROGRAM, json.dumps([arguments for arguments, _ in COMMANDS])]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert "Traceback" not in done.stderr.decode()
    said = done.stdout.decode("ascii")
    for text in ("deit-jax TOOL ?\n", "2 classes", "step 2/2", "class head"):  # the first: an ellipsis, replaced
        assert text in said
    assert not list(here.iterdir()), "no folder named ~"
    for _, file in COMMANDS:
        assert (home / file).exists()
        if file.endswith((".md", ".json", ".csv")):
            assert (home / file).read_text(encoding="utf-8").strip()
    for name in ("curves.png", "attention.png", "log.jsonl", "config.json", "checkpoints/2"):
        assert (home / "run" / name).exists(), name
    assert "café" in (home / "found/classes.md").read_text(encoding="utf-8")
