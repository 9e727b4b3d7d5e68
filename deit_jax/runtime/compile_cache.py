"""Compiled programs kept between runs: a second start, a resumed run and each arm of an ablation compile nothing."""

import os
import platform
import zlib
from pathlib import Path

import jax

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
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(compile_cache_folder()))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
