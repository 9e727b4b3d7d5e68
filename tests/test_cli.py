"""The console command, and what an installed package needs."""

import importlib
import re
import sys
import tomllib

import pytest
from helpers import ROOT, main

from deit_jax import __main__, cli

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    assert cli.config_path("digits:distill=soft") == f"{ROOT / 'configs/digits.py'}:distill=soft"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").touch()
    assert cli.config_path("digits") == str(tmp_path / "digits"), "a file of that name comes first"


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--version"], None, re.escape(cli.__version__)),
        ([], None, "TOOL: predict, convert"),
        (["train", "--help"], None, "--workdir: Folder of the run"),
        (["trian"], 2, r"'trian' is not a command \(did you mean train\?\)"),
        (["config"], None, "optimizer.lr "),
        (["train", "--config=digit"], 2, r"config digit does not exist \(did you mean digits\?\)"),
        (["plan"], 2, "no config: give --config="),
        (["--wrkdir=x"], 2, "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    ],
)
def test_commands(arguments, code, expected, capsys):
    try:
        __main__.main(arguments)
        ended = None
    except SystemExit as end:
        ended = end.code
    printed = capsys.readouterr()
    assert ended == code
    assert re.search(expected, printed.out + printed.err)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("lr", "teacher.lr or optimizer.lr"),
        ("optimizer.lt", "optimizer.lr"),
        ("weight_decay", "optimizer.weight_decay"),
        ("modle.name", "model.name"),
        ("techer.lr", "teacher.lr"),
    ],
)
def test_an_unknown_setting_is_one_line_with_the_nearest_names(path, meant):
    done = main("--config=configs/digits.py", f"--config.{path}=1")
    assert done.code == 2
    known = f"config.{path} is not a setting (did you mean {meant}?)"
    assert done.err == f"error: {known}: python -m deit_jax.config lists all\n"


def test_a_value_may_follow_its_setting_as_an_argument_of_its_own():
    config = cli.parse(
        ["--config", "digits:distill=soft", "--config.batch_size", "64", "--config.train_baseline"]
    ).config
    assert (config.distill.kind, config.batch_size, config.train_baseline) == ("soft", 64, True)


def test_all_packages_are_installed():
    found = {"deit_jax.configs"}
    found |= {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "deit_jax").rglob("__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_requirements_are_the_layers_together():
    """requirements.txt, for the two commands, is core, [train] and [data] of pyproject.toml."""
    layers = PYPROJECT["project"]["optional-dependencies"]
    parts = PYPROJECT["project"]["dependencies"] + layers["train"] + layers["data"]
    assert sorted((ROOT / "requirements.txt").read_text().split()) == sorted(parts)


def test_the_command_beside_the_library_alone_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ml_collections", None)
    for name in ("cli", "__main__"):
        monkeypatch.delitem(sys.modules, f"deit_jax.{name}", raising=False)
    with pytest.raises(SystemExit, match="^2$"):
        importlib.import_module("deit_jax.__main__")
    assert "error: the command needs more than the library" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "many"),
    [
        ("digits", {}, False),
        ("digits", {"teacher.img_size": 32}, True),
        ("digits", {"batch_size": 128}, True),
        ("deit_ti", {"batch_size": 1}, True),
        ("deit_ti", {"model.name": "package.module:Own"}, True),
    ],
)
def test_one_heap_is_for_batches_of_many_pixels(name, changes, many):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict(changes)
    assert cli.has_many_pixels(config) is many
