"""The mesh of a run: its axes' sizes."""

import re

import jax
import pytest
import yaml
from helpers import ROOT

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


def test_the_jobset_of_the_docs_gives_each_pod_its_variables():
    """What docs/scale.md hands to Kubernetes is a JobSet whose pods find process 0 and know how many they are."""
    text = (ROOT / "docs/scale.md").read_text()
    jobset = yaml.safe_load(re.search(r"```yaml\n(apiVersion: jobset.*?)```", text, re.DOTALL)[1])
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    variables = {entry["name"]: entry for entry in pod["containers"][0]["env"]}
    assert set(variables) == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} < set(CLUSTER)
    # JobSet's host names: JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN, the subdomain being the JobSet's name
    name = jobset["metadata"]["name"]
    host = f"{name}-{replicated['name']}-0-0.{name}"
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"].rpartition(":")[0] == host
    assert int(variables["JAX_NUM_PROCESSES"]["value"]) == job["completions"] == job["parallelism"]
    index = variables["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert (job["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")
    assert pod["terminationGracePeriodSeconds"] >= 60  # the state is saved in that time


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES is '': set it"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is 'x': set it"),
    ],
)
def test_half_an_environment_is_told(environment, message, monkeypatch):
    set_environment(monkeypatch, {"JAX_COORDINATOR_ADDRESS": "a:1"} | environment)
    with pytest.raises(UserError, match=message):
        sharding.start_processes()
