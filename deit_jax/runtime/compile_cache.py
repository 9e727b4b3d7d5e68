"""Compiled programs kept between runs: a second start, a resumed run and each arm of an ablation compile nothing."""

import contextlib
import functools
import os
import platform
import sys
import warnings
import zlib
from pathlib import Path

import jax
from jax._src import compilation_cache  # jax has no public name for how an entry is packed

LARGEST = 2**30  # bytes; the least recently used go first


def compile_cache_folder() -> Path:
    """One folder per kind of processor: programs for one may not run on another that shares the home folder."""
    try:
        features = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        features = platform.processor()
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "deit_jax" / f"{platform.machine()}-{zlib.crc32(features.encode()):08x}"


def use_compile_cache() -> None:
    """Keep what takes a second or more to compile. JAX_COMPILATION_CACHE_DIR names another folder, or, empty, none."""
    watch_cache()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(compile_cache_folder()))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)


@functools.cache
def watch_cache() -> None:
    """Repair a damaged cache when jax warns of it, or do without one that cannot be written; one line for either.

    jax alone warns of each program at every start, compiles it each time, and never writes its entry again.
    """
    show = warnings.showwarning

    def hook(message, category, filename, lineno, file=None, line=None) -> None:
        if "persistent compilation cache entry" not in str(message):
            show(message, category, filename, lineno, file, line)
            return
        folder = Path(jax.config.values["jax_compilation_cache_dir"] or ".")
        removed = remove_damaged(folder)
        if removed:
            print(f"compilation cache {folder}: {removed} damaged entries removed, to be recreated", file=sys.stderr)
        elif jax.config.values["jax_enable_compilation_cache"]:
            jax.config.update("jax_enable_compilation_cache", False)
            reason = str(message).partition("': ")[2].splitlines()[0][:160]
            print(
                f"compilation cache {folder} is not used in this start ({reason}): make room there or remove it",
                file=sys.stderr,
            )

    warnings.showwarning = hook


def remove_damaged(folder: Path) -> int:
    """Remove the entries that cannot be unpacked, or that lack the time of their last use; returns how many."""
    removed = 0
    bounded = jax.config.values["jax_compilation_cache_max_size"] != -1
    for entry in folder.glob("*-cache"):
        last_use = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        try:
            compilation_cache.decompress_executable(entry.read_bytes())
            intact = not bounded or last_use.stat().st_size == 8
        except Exception:  # each compressor has its own
            intact = False
        if not intact:
            with contextlib.suppress(OSError):
                entry.unlink()
                last_use.unlink(missing_ok=True)
                removed += 1
    return removed
