"""Paths in a bucket do what paths on a disk do; writes are whole or not done; a lock is held by one process."""

import errno
import json
import os
import sys
import threading
import time

import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import atomic, lock, storage

TREE = ("a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.json", "g/1/h.txt", "g/12/h.txt", "g/x/h.txt")


def fill(folder):
    for name in TREE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def listed(folder):
    """What is seen of a folder, by names below it."""
    name = lambda path: str(path)[len(str(folder)) + 1 :]
    names = [*TREE, "b", "b/d", "g", "nothing", "b/c"]
    return {
        "files": {name(path): size for path, size in storage.files(folder).items()},
        "folders": [name(path) for path in storage.folders(folder)],
        "sizes": storage.sizes(folder, ["a.txt", "b", "nothing", "b/d/e.txt"]),
        "children": sorted(name(path) for path in folder.iterdir()),
        "kinds": {n: ((folder / n).is_file(), (folder / n).is_dir(), (folder / n).exists()) for n in names},
        **{
            pattern: sorted(name(path) for path in folder.glob(pattern))
            for pattern in ("*", "*.txt", "*/*", "g/[0-9]*", "g/*/h.txt", "*/*/*.json", "nothing/*")
        },
    }


def test_a_folder_in_a_bucket_looks_as_one_on_a_disk(bucket, tmp_path):
    for folder in (bucket, tmp_path):
        fill(folder)
    assert listed(bucket) == listed(tmp_path)
    for folder in (bucket, tmp_path):
        (folder / "b").rename(folder / "moved")
        (folder / "a.txt").unlink()
        (folder / "a.txt").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            (folder / "a.txt").read_bytes()
        storage.remove(folder / "g")
    assert listed(bucket) == listed(tmp_path)
    assert (bucket / "moved/d/e.txt").read_text() == "b/d/e.txt"
    assert (bucket / "moved/c.txt").stat().st_size == 7


def test_addresses(bucket):
    assert storage.place("gs://bucket/runs/") == bucket
    assert str(bucket / "a" / "b.txt") == "gs://bucket/runs/a/b.txt"
    assert str((bucket / "a.txt").with_name("b.txt").parent) == "gs://bucket/runs"
    assert str(storage.place("file:///data/a")) == "/data/a"
    for wrong, message in (
        ("s3://a/b", "mount the storage"),
        ("gs://", "names no bucket"),
        ("file://a/b", "not a path"),
    ):
        with pytest.raises(UserError, match=message):
            storage.place(wrong)


def test_without_its_packages_an_address_is_refused_in_one_line(monkeypatch):
    monkeypatch.delattr("deit_jax.runtime.bucket", raising=False)
    monkeypatch.setitem(sys.modules, "deit_jax.runtime.bucket", None)
    with pytest.raises(UserError, match=r"gs://b/run needs the extra gcs .* pip install 'deit-jax\[all,gcs\]'"):
        storage.place("gs://b/run")


def test_a_bucket_that_does_not_answer_is_never_an_empty_one(bucket, gcs_server):
    fill(bucket)
    gcs_server.failing, gcs_server.failing_methods = 403, ("GET",)
    for ask in (bucket.exists, bucket.is_dir, (bucket / "a.txt").is_file, lambda: list(bucket.glob("*"))):
        with pytest.raises(PermissionError, match="not permitted"):
            ask()


def test_an_object_that_cannot_be_read_on_fails_as_a_file_does(bucket, gcs_server):
    fill(bucket)
    with (bucket / "a.txt").open("rb") as file:
        gcs_server.failing, gcs_server.failing_methods = 403, ("GET",)
        with pytest.raises(PermissionError, match="not permitted"):
            file.read()


def test_a_write_that_fails_changes_nothing(bucket, gcs_server):
    atomic.write_json(bucket / "a.json", {"a": 1})
    gcs_server.failing, gcs_server.failing_methods = 403, ("POST", "PUT")
    with pytest.raises(UserError, match=r"gs://bucket/runs/a.json cannot be written \(not permitted.* may write to it"):
        atomic.write_json(bucket / "a.json", {"a": 2})
    with pytest.raises(UserError, match="cannot be written"), atomic.replacing(bucket / "a.json") as part:
        part.write_text("half")
    gcs_server.failing = 0
    assert json.loads((bucket / "a.json").read_text()) == {"a": 1}

    def fail(part):
        part.write_text("half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), atomic.replacing(bucket / "a.json") as part:
        fail(part)
    assert json.loads((bucket / "a.json").read_text()) == {"a": 1}


def test_a_full_temporary_folder_is_told_as_such(bucket):
    (bucket / "a.json").write_text("before")
    with pytest.raises(UserError, match="temporary folder first, which fails .No space left.*set TMPDIR"):  # noqa: SIM117
        with atomic.replacing(bucket / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert (bucket / "a.json").read_text() == "before"


def test_a_large_object_is_read_and_written_in_parts(bucket, tmp_path, monkeypatch):
    from google.cloud.storage import blob

    monkeypatch.setattr(blob, "_MAX_MULTIPART_SIZE", 1 << 18)
    monkeypatch.setattr(blob, "_DEFAULT_CHUNKSIZE", 1 << 18)
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "large").write_bytes(content)
    (bucket / "large").upload(tmp_path / "large")
    assert (bucket / "large").read_bytes() == content
    with (bucket / "large").open("rb") as file:
        assert file.read(100) + file.read() == content


# the lock


@pytest.fixture
def fast(monkeypatch):
    """The lock's times, in tenths of a second."""
    from deit_jax.runtime import bucket_lock

    monkeypatch.setattr(bucket_lock, "REFRESH", 0.1)
    monkeypatch.setattr(bucket_lock, "LAPSE", 0.8)
    return bucket_lock


def held_elsewhere(bucket, **content):
    (bucket / ".lock").write_text(json.dumps({"process": 7, "host": "far", "boot": "b", "since": "noon"} | content))


def test_a_folder_is_held_while_its_holder_writes_its_lock(bucket, fast):
    with lock.hold(bucket), lock.hold(bucket):  # the same process again
        first, content = fast.read_lock(bucket / ".lock")
        assert content["process"] == os.getpid()
        time.sleep(0.4)
        again, _ = fast.read_lock(bucket / ".lock")
        assert again > first > 0, "it was written again"
    assert not (bucket / ".lock").exists()

    stop = threading.Event()

    def live():
        while not stop.wait(0.1):
            held_elsewhere(bucket)

    held_elsewhere(bucket)
    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(UserError, match=r"in use by process 7 on far since noon: wait for it"), lock.hold(bucket):
        pass
    stop.set()
    thread.join()
    begun = time.monotonic()
    with lock.hold(bucket):  # it has gone silent
        assert 0.5 < time.monotonic() - begun < 5


def test_a_dead_process_of_this_machine_holds_nothing(bucket, fast):
    gone = 2**22 + 1  # above the system's largest number
    held_elsewhere(bucket, process=gone, boot=fast.boot())
    begun = time.monotonic()
    with lock.hold(bucket):
        assert time.monotonic() - begun < 0.5


def test_a_process_whose_lock_was_taken_ends(bucket, fast, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(fast, "end_now", lambda text, code: ended.set() if "process 7 on far" in text else None)
    with lock.hold(bucket):
        held_elsewhere(bucket)
        assert ended.wait(5)
    assert (bucket / ".lock").exists(), "the other's lock is left alone"
