"""The console command, and what an installed package needs."""

import re
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT, main

import deit_jax
from deit_jax import __main__, cli

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_a_shipped_config_is_found_by_name(tmp_path, monkeypatch):
    assert cli.config_path("digits:distill=soft") == f"{ROOT / 'configs/digits.py'}:distill=soft"
    assert cli.config_path("configs/digits.py") == "configs/digits.py"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").touch()
    assert cli.config_path("digits") == "digits", "a file of that name comes first"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--version"], None, re.escape(cli.__version__)),
        ([], None, "TOOL: predict, convert"),
        (["trian"], 2, r"'trian' is not a command \(did you mean train\?\)"),
        (["config"], None, "optimizer.lr "),
    ],
)
def test_commands(arguments, code, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deit-jax", *arguments])
    try:
        cli.run()
        ended = None
    except SystemExit as end:
        ended = end.code
    printed = capsys.readouterr()
    assert ended == code
    assert re.search(said, printed.out + printed.err)


def test_a_study_in_a_bucket_is_refused():
    done = main("--mode=ablate", "--config=configs/digits.py", "--workdir=gs://bucket/study")
    assert done.code == 2
    assert "workdir gs://bucket/study is in a bucket" in done.err


def test_names_are_the_same_for_static_tools():
    assert set(deit_jax.__all__) == set(deit_jax._FROM)


def test_every_tool_is_a_module():
    for module in cli.TOOLS.values():
        path = ROOT / "deit_jax" / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_all_packages_are_installed():
    found = {"deit_jax.configs"}
    found |= {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "deit_jax").rglob("__init__.py")}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == found


def test_requirements_are_the_layers_together():
    """requirements.txt, for the two commands, is core, [train] and [data] of pyproject.toml."""
    layers = PYPROJECT["project"]["optional-dependencies"]
    parts = PYPROJECT["project"]["dependencies"] + layers["train"] + layers["data"]
    assert sorted((ROOT / "requirements.txt").read_text().split()) == sorted(parts)


def test_the_library_needs_the_core_alone(tmp_path):
    """Modules, weights, losses and augmentations import nothing that only [train] or [data] install."""
    layers = PYPROJECT["project"]["optional-dependencies"]
    names = {re.split(r"[><=]", line)[0].replace("-", "_") for line in layers["train"] + layers["data"]}
    names |= {"orbax", "sklearn", "absl", "cykooz"}
    program = f"""
import sys

class Refuse:  # what flax itself imports is the core's; only our own imports count
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        ours = frame is not None and "deit_jax" in frame.f_globals.get("__name__", "")
        if name.split(".")[0] in {sorted(names)!r} and ours:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import deit_jax
for name in deit_jax.__all__:
    getattr(deit_jax, name)
import deit_jax.augment, deit_jax.losses
model = deit_jax.create_model("deit_digits_patch4_16", num_classes=10)
print(model.img_size)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_beside_the_library_alone_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_collections", None)
    monkeypatch.delitem(sys.modules, "deit_jax.cli", raising=False)
    with pytest.raises(SystemExit, match=r"^error: the command needs more than the library .* 'deit-jax\[all\]'$"):
        __main__.main()
