"""One process at a time in a folder of a bucket, where no system lets go of a dead process's lock.

FOLDER/.lock    who holds it: process, host, since when. Created on the condition that it is not there, written again
                every REFRESH seconds while the holder lives, removed when it lets go

A lock that was not written for LAPSE seconds is a dead process's, and is taken over, on the condition that it is still
the same. So another start may wait that long before it knows; on the machine of the holder it is known at once. A
process that was cut off from the bucket for longer than that may find its lock taken: it ends when it next
reaches the bucket, and until then both may write.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api_core.exceptions import PreconditionFailed

from deit_jax.runtime import atomic
from deit_jax.runtime.bucket import RETRY, BucketPath, as_os_errors, client
from deit_jax.runtime.holder import holder_text, ourselves
from deit_jax.runtime.interrupt import EXIT_LOST, end_now

REFRESH = 10.0  # seconds
LAPSE = 40.0  # seconds
AGAIN: dict[str, Any] = {"timeout": 5, "retry": RETRY.with_timeout(10)}  # seconds: a request must not outlast LAPSE
HELD: dict[str, "Lock"] = {}  # by folder, of this process


class Lock:
    """The lock of a folder, while this process holds it."""

    def __init__(self, path: BucketPath, generation: int):
        self.path, self.generation, self.count = path, generation, 1
        self.released = threading.Event()
        self.thread = threading.Thread(target=self.refresh, name="lock", daemon=True)
        self.thread.start()

    def refresh(self) -> None:
        """Write the lock again and again; end the process if another one has taken it."""
        while not self.released.wait(REFRESH):
            try:
                generation = write_lock(self.path, self.generation)
            except Exception:  # the network is down: the lock may lapse, which the next write tells
                continue
            if generation is None:
                other = "another process"
                with contextlib.suppress(Exception):
                    other = holder_of(self.path)
                end_now(
                    f"{self.path.parent} was taken over by {other}, as this process could not reach"
                    f" the bucket for {LAPSE:.0f} s",
                    EXIT_LOST,
                )
            else:
                self.generation = generation

    def release(self) -> None:
        """Remove the lock, unless it is another's."""
        self.released.set()
        self.thread.join()
        with contextlib.suppress(OSError, PreconditionFailed), as_os_errors(self.path):
            self.path.blob.delete(if_generation_match=self.generation, retry=RETRY)


@contextlib.contextmanager
def try_hold(folder: Path) -> Iterator[str | None]:
    """As `deit_jax.runtime.lock.try_hold`, of a folder in a bucket."""
    name, path = str(folder), BucketPath(folder / ".lock")
    if name in HELD:
        HELD[name].count += 1
    else:
        try:
            generation = acquire(path)
        except OSError as error:
            raise atomic.write_error(path, error) from error
        if generation is None:
            yield holder_of(path)
            return
        HELD[name] = Lock(path, generation)
    try:
        yield None
    finally:
        HELD[name].count -= 1
        if not HELD[name].count:
            HELD.pop(name).release()


def acquire(path: BucketPath) -> int | None:
    """The generation of the lock, once this process holds it; None where another does, and lives."""
    if (generation := write_lock(path, 0)) is not None:
        return generation
    there, content = read_lock(path)
    if not there:
        return write_lock(path, 0)
    if not is_dead(content):
        who = holder_text(content)
        print(f"{path.parent} may be in use by {who}: waiting for its sign of life, at most {LAPSE:.0f} s", flush=True)
        end = time.monotonic() + LAPSE
        while time.monotonic() < end:
            time.sleep(min(1.0, LAPSE / 10))
            now, _ = read_lock(path)
            if not now:
                return write_lock(path, 0)
            if now != there:
                return None
    return write_lock(path, there)


def write_lock(path: BucketPath, generation: int) -> int | None:
    """Write the lock where its generation is `generation` (0: where it is not there). Returns the new one, or None
    where it was another."""
    blob = path.blob
    try:
        with as_os_errors(path):
            blob.upload_from_string(json.dumps(OURS), if_generation_match=generation, **AGAIN)
    except PreconditionFailed:
        there, content = read_lock(path)  # a request that was sent twice fails as its first one was done
        return there if content == OURS and there else None
    return blob.generation


def read_lock(path: BucketPath) -> tuple[int, dict[str, Any]]:
    """(generation, content) of the lock; 0 where it is not there."""
    while True:
        try:
            with as_os_errors(path):
                blob = client().bucket(path.bucket).get_blob(path.key, **AGAIN)
                if blob is None:
                    return 0, {}
                content = blob.download_as_bytes(if_generation_match=blob.generation, **AGAIN)
        except (FileNotFoundError, PreconditionFailed):  # it was written or removed just now
            continue
        try:
            return int(blob.generation or 0), dict(json.loads(content))
        except (ValueError, TypeError):
            return int(blob.generation or 0), {}


def boot() -> str:
    """What two processes that can see each other's numbers have in common: the system's start and its namespace."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


OURS = {**ourselves(), "boot": boot(), "token": secrets.token_hex(8)}


def is_dead(content: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and is gone."""
    return bool(boot()) and content.get("boot") == boot() and not atomic.is_alive(content.get("process", 0))


def holder_of(path: BucketPath) -> str:
    """Who holds a lock, for people."""
    return holder_text(read_lock(path)[1])
