"""The command line: one clear line for what a user can fix, before anything is compiled or written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, main

DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS, "--config.batch_size=many"], "--config.batch_size=many: invalid literal for int()"),
        ([DIGITS, "--config.distill.kind=harder"], "distill.kind is 'harder' (did you mean hard?)"),
        (["--config=configs/digit.py"], "configs/digit.py does not exist (did you mean digits?)"),
        (["--config=configs/digits.py:distil=soft"], "'distil=soft' is not known (did you mean distill?)"),
        ([DIGITS, "--mode=trian"], "flag --mode=trian: value should be one of <train|evaluate|"),
        ([DIGITS, "--config.model.img_size=17"], "img_size 17 is not a multiple of patch_size 4: use 16 or 20"),
        ([DIGITS, "--config.model.name=deit_digit_patch4_16"], "(did you mean deit_digits_patch4_16?)"),
        ([DIGITS, "--config.batch_size=100"], "100 is not divisible by 8 devices: use --config.batch_size=96"),
        ([DIGITS, "--config.batch_size=2000"], "batch_size 2000 is more than the"),
        ([DIGITS, "--config.model.num_classes=7"], "digits has 10 classes"),
        (
            ["--config=configs/deit_ti.py", "--config.data.root=/nowhere", "--config.init=/none.safetensors"],
            "data.root /nowhere is not a folder",
        ),
        ([DIGITS, "--config.recipe=papper"], "recipe is 'papper' (did you mean paper?)"),
        ([DIGITS, "config.batch_size=7"], "argument 'config.batch_size=7' is not a flag: write --config.batch_size=7"),
        ([DIGITS, "--config.teacher.epochs=0"], "teacher regnety_mini has no weights"),
        ([DIGITS, "--mode=ablate", "--workdir=gs://bucket/study"], "workdir gs://bucket/study is in a bucket"),
        ([DIGITS, "--mode=evaluate"], "holds no checkpoint"),
    ],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    run = main(f"--workdir={tmp_path / 'run'}", *arguments)
    assert run.code == 2
    error = run.err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("kept")
    run = main(DIGITS, f"--workdir={tmp_path / 'file' / 'run'}")
    assert run.code == 2
    assert "cannot be written" in run.err
    assert (tmp_path / "file").read_text() == "kept"


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    """A plain digits run in `folder`, its lines to be read."""
    plain = ["--config=configs/digits.py:distill=none", "--config.log.tensorboard=False", "--config.log.every=1"]
    command = [sys.executable, "main.py", *plain, *arguments, f"--workdir={folder}"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen, text: str) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"ended before it said {text}")


@pytest.mark.slow
def test_runs_that_are_killed_or_stopped_complete_as_if_nothing_had_been(tmp_path):
    arguments = "--config.epochs=8 --config.batch_size=128 --config.data.limit=640".split()
    arguments += "--config.evaluate.every=1 --config.checkpoint.every=1".split()
    # before a checkpoint, while one is written, and with thirty steps left; more: benchmarks/faults
    for moment, number in (("step 2/", signal.SIGKILL), ("step 6/", signal.SIGKILL), ("step 7/", signal.SIGTERM)):
        process = start(tmp_path / "run", *arguments)
        read_until(process, moment)
        process.send_signal(number)
        rest = process.stdout.read()
        process.wait()
    assert process.returncode == 130
    assert "saved; the same command resumes from there" in rest
    for folder in ("run", "whole"):
        process = start(tmp_path / folder, *arguments)
        assert "report:" in process.stdout.read()
        assert process.wait() == 0
    logs = []
    for folder in ("run", "whole"):
        records = map(json.loads, (tmp_path / folder / "log.jsonl").read_text().splitlines())
        logs.append([(r["step"], r.get("loss"), r.get("eval/top1")) for r in records])
    assert logs[0] == logs[1]
    assert len({step for step, _, _ in logs[0]}) == 40
