"""Every command where people run it: paths with `~`, a terminal that has ASCII alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, folder_of_images, state_of
from safetensors.numpy import save_file

WEIGHTS = "~/deit_digits_patch4_16.safetensors"
TRAIN = (
    "--config=~/config.py --config.data.root=~/photos --config.model.name=deit_digits_patch4_16 --config.batch_size=8"
    " --config.steps=2 --config.log.tensorboard=False --config.augment.policy=none"
).split()
LABELS = ["--config.teacher.name=deit_digits_patch4_16", "--config.distill.kind=hard"]
STUDENT = "--config.model.name=deit_digits_distilled_patch4_16"
COMMANDS = [  # arguments, and a file that the command writes
    (["--help"], ""),
    (["config"], ""),
    (["doctor", "~/photos"], ""),
    (["prepare", "~/photos", "~/shards"], "shards/dataset.json"),
    (["convert", WEIGHTS, "~/converted.safetensors"], "converted.safetensors"),
    (["train", *TRAIN, f"--config.init={WEIGHTS}", "--workdir=~/run"], "run/report.md"),
    (["label", *TRAIN, *LABELS, STUDENT, "--config.teacher.init=~/run", "--workdir=~/labels"], "labels/labels.json"),
    (["train", *TRAIN, *LABELS, STUDENT, "--config.distill.labels=~/labels", "--workdir=~/taught"], "taught/report.md"),
    (["evaluate", "--checkpoint=~/run", "--data=mine=~/photos", "--output=~/found"], "found/evaluation.md"),
    (["predict", "~/run", "~/photos/val", "--output=~/rows.csv", "--attention=~/attention.png"], "rows.csv"),
    (["show", *TRAIN, "--output=~/batch.png"], "batch.png"),
    (["plan", *TRAIN], ""),
    (["check", "~/run"], ""),
]
PROGRAM = """
import json, sys
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
    save_file(state_of("deit_digits_patch4_16"), home / Path(WEIGHTS).name)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment = os.environ | plain | {"HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, json.dumps([arguments for arguments, _ in COMMANDS])]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert "Traceback" not in done.stderr.decode()
    assert "deit-jax TOOL ?\n" in done.stdout.decode("ascii"), "an ellipsis, replaced"
    assert not list(here.iterdir()), "no folder named ~"
    for _, file in COMMANDS:
        assert (home / file).exists()
        if file.endswith((".md", ".json", ".csv")):
            assert (home / file).read_text(encoding="utf-8").strip()
    assert "café" in (home / "found/classes.md").read_text(encoding="utf-8")
