"""The mesh of a run: its axes' sizes."""

import jax
import pytest

from deit_jax.errors import UserError
from deit_jax.runtime import sharding
from deit_jax.runtime.mesh import mesh_sizes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (8, 1)),
        ({"fsdp": -1}, (1, 8)),
        ({"data": -1, "fsdp": 4}, (2, 4)),
        ({"data": 2, "fsdp": -1}, (2, 4)),
    ],
)
def test_sizes(given, expected):
    mesh = sharding.make_mesh(**given)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == expected
    assert mesh.devices.flatten().tolist() == jax.devices()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fsdp": 3}, "mesh.fsdp=3 .*does not make up 8 devices"),
        ({"data": 2, "fsdp": 2}, "does not make up 8 devices"),
        ({"fsdp": 0}, "from 1 on"),
        ({"data": -2}, "from 1 on"),
    ],
)
def test_sizes_that_are_not_a_mesh(given, message):
    with pytest.raises(UserError, match=message):
        mesh_sizes(8, **given)


CLUSTER = "JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID DEIT_JAX_PROCESSES SLURM_NTASKS".split()
CLUSTER += ["TPU_WORKER_HOSTNAMES"]


def set_environment(monkeypatch, environment):
    for name in CLUSTER:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "calls"),
    [
        ({}, []),
        ({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ({"SLURM_NTASKS": "2"}, [()]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, [()]),
        ({"DEIT_JAX_PROCESSES": "auto"}, [()]),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, [(None, 4, 3)]),
    ],
)
def test_processes_are_found_by_their_environment(environment, calls, monkeypatch):
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: started.append(arguments))
    set_environment(monkeypatch, environment)
    sharding.start_processes()
    assert started == calls


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "are \\['', '0'\\]: JAX_COORDINATOR_ADDRESS needs both"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}, "are \\['2', 'x'\\]: JAX_COORDINATOR_ADDRESS needs both"),
    ],
)
def test_half_an_environment_is_told(environment, message, monkeypatch):
    set_environment(monkeypatch, {"JAX_COORDINATOR_ADDRESS": "a:1"} | environment)
    with pytest.raises(UserError, match=message):
        sharding.start_processes()
