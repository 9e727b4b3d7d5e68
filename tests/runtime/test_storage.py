"""One function turns what a user gives into a path; listings leave out what is removed meanwhile."""

from pathlib import Path

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import storage


def test_what_a_user_gives_becomes_an_absolute_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    assert storage.as_path("~/run") == Path("/home/me/run")
    assert storage.as_path("runs/a") == tmp_path / "runs/a"
    for address in ("s3://bucket/a", "file:///data/a", "gs://"):
        with pytest.raises(UserError, match="is not a path of this machine"):
            storage.as_path(address)


def test_what_is_removed_while_a_folder_is_listed_is_left_out(tmp_path):
    (tmp_path / "step" / "params").mkdir(parents=True)
    (tmp_path / "step" / "kept").write_bytes(b"123")
    assert storage.files(tmp_path) == [tmp_path / "step" / "kept"]
    assert storage.files(tmp_path / "gone") == []
