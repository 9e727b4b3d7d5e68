"""A file is replaced whole or not at all, and what cannot be written is said in one line."""

import errno
import json
import os
import subprocess
import sys

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import atomic

KILLED = """
import os, sys
from deit_jax.runtime import atomic
with atomic.replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os._exit(9)
"""


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "record.json"
    for value in (1, 2):
        atomic.write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_text_with_names_that_are_not_utf8_is_written_as_escapes(tmp_path):
    atomic.write_text(tmp_path / "é.md", "café " + os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "é.md").read_bytes() == "café caf\\udce9".encode()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.txt"
    atomic.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole(tmp_path):
    with atomic.replacing(tmp_path / "made") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner/file").write_text("x")
        assert not (tmp_path / "made").exists()
    assert (tmp_path / "made/inner/file").read_text() == "x"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_full_disk_is_one_line_with_the_free_space(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError, match=r"log cannot be written \(No space left.* free in .*; make room"):  # noqa: SIM117
        with atomic.replacing(tmp_path / "log"):
            raise full
    library = ValueError('RESOURCE_EXHAUSTED: write: "/x" No space left on device [source locations=...]\nmore')
    assert "make room" in str(atomic.write_error(tmp_path / "x", library))
    assert "\n" not in str(atomic.write_error(tmp_path / "x", library))


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file or directory.*check that .* exists"):
        atomic.write_text(tmp_path / "gone" / "file", "x")


@pytest.mark.parametrize(("count", "text"), [(812, "812 B"), (3.4e6, "3.4 MB"), (2e12, "2.0 TB")])
def test_bytes_for_people(count, text):
    assert atomic.readable(count) == text


def test_a_killed_process_leaves_the_old_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a.json"]).returncode == 9
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_librarys_error_keeps_its_cause_and_loses_its_description():
    text = (
        "UNKNOWN: Error opening: "
        + "Error writing a/b/c in OCDBT database: " * 9
        + "CURL error [tensorstore_spec='{...}']"
    )
    reason = atomic.reason(ValueError(text))
    assert reason.endswith("CURL error")
    assert len(reason) < 250
    assert atomic.reason(OSError()) == "OSError"
