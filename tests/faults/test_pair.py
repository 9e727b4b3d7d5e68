"""What two real processes say to each other: started once, for all tests."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from deit_jax.distill.label_store import CHUNK, LabelStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(folder, what each of the two saw)."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    logs = [folder / f"{i}.log" for i in range(2)]
    processes = []
    for index, log in enumerate(logs):
        with open(log, "w") as file:
            command = [sys.executable, Path(__file__).with_name("pair.py"), str(index), str(port), folder]
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            processes.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        end = time.monotonic() + 120
        while not all("labelling" in log.read_text() for log in logs):
            assert time.monotonic() < end, [log.read_text() for log in logs]
            assert all(p.poll() is None for p in processes), [log.read_text() for log in logs]
            time.sleep(0.05)
        time.sleep(0.5)
        processes[1].send_signal(signal.SIGTERM)
        codes = [p.wait(60) for p in processes]
        assert codes == [0, 0], [log.read_text() for log in logs]
    finally:
        for process in processes:
            process.kill()
    return folder, [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


def test_all_wait_for_process_0(pair):
    assert pair[1][1]["waited"] > 0.3


def test_all_do_what_process_0_decides_and_end_when_it_cannot_go_on(pair):
    assert [seen["decided"] for seen in pair[1]] == [7, 7]
    assert [seen["refused"] for seen in pair[1]] == ["the disk is gone", "process 0 cannot continue: it says why"]


def test_data_that_differ_between_the_processes_are_refused_on_both(pair):
    assert [seen["same"] for seen in pair[1]] == ["", ""]
    assert all("evaluation" in seen["other"] and "training" not in seen["other"] for seen in pair[1]), pair[1]


def test_a_save_that_fails_on_one_process_fails_on_both_and_the_next_succeeds(pair):
    for seen in pair[1]:
        assert seen["saves"] == {"steps": [1, 3], "failure": "None", "close": ""}
    said = [line for line in (pair[0] / "0.log").read_text().splitlines() if line.startswith("warning: step 2")]
    assert len(said) == 1
    assert "training continues, and the next save tries again" in said[0]


def test_a_signal_to_one_stops_labelling_on_both_and_what_is_stored_is_right(pair):
    folder, seen = pair
    store = LabelStore(folder / "labels")
    there = store.present()
    assert 0 < len(there) < 40
    for one in seen:
        assert one["stopped"].startswith(f"labels: stopped with {len(there) * CHUNK} of {40 * CHUNK} steps stored")
    assert store.damaged() == {}
    for chunk in there:
        assert (store.read(chunk * CHUNK)["decision"] == chunk * CHUNK % 10).all()
