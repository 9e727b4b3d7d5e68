"""In processes of their own, because jax's settings stay."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from deit_jax.runtime.compile_cache import use_compile_cache
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(float(jax.jit(lambda x: (jnp.sin(x) * 3).sum())(jnp.ones(5))))
print("hit" if "/jax/compilation_cache/cache_hits" in hits else "miss")
"""


def run(**environment) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    first = run(XDG_CACHE_HOME=str(tmp_path))
    second = run(XDG_CACHE_HOME=str(tmp_path))
    assert (first[1], second[1]) == ("miss", "hit")
    assert first[0] == second[0]
    assert [path.name for path in tmp_path.iterdir()] == ["deit_jax"]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "mine"])
def test_another_folder_or_none(tmp_path, folder):
    chosen = str(tmp_path / folder) if folder else ""
    run(XDG_CACHE_HOME=str(tmp_path / "home"), JAX_COMPILATION_CACHE_DIR=chosen)
    assert not (tmp_path / "home").exists()
    assert (tmp_path / "mine").exists() == bool(folder)
