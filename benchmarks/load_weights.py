"""What reading a model's weights costs: processor seconds and peak memory of `deit_jax.load_model`.

    python benchmarks/load_weights.py [--model=deit_base_distilled_patch16_224] [--rounds=5] [--output=FILE]

Writes a safetensors file of the model's size and reads it in a new process per round, with jax imported and started
beforehand. Memory is what the process has at its peak beyond what it had before (Linux).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT
from safetensors.numpy import save_file

from deit_jax import models
from deit_jax.weights.names import Timm, entries

MEASURE = """
import json, sys, time
import jax
import deit_jax
def memory(kind):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(kind))
jax.numpy.zeros(1)
before, cpu, clock = memory("VmRSS"), time.process_time(), time.perf_counter()
deit_jax.load_model(sys.argv[1])
spent = time.process_time() - cpu, time.perf_counter() - clock
print(json.dumps([*spent, memory("VmHWM") - before]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_base_distilled_patch16_224")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    _, params, batch_stats = models.abstract(models.constructor(options.model))
    shapes = {e.key: e.shape for e in entries({"params": params, "batch_stats": batch_stats}, Timm())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{options.model}.safetensors"
        save_file({key: np.full(shape, 0.5, np.float32) for key, shape in shapes.items()}, path)
        size = path.stat().st_size
        command = [sys.executable, "-c", MEASURE, str(path)]
        rounds = [
            json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
            for _ in range(options.rounds)
        ]
    cpu, clock, memory = zip(*rounds, strict=True)
    print(f"{options.model}, {size / 1e6:.0f} MB\n")
    print("| | min | median | max |\n| --- | --- | --- | --- |")
    for name, values in (
        ("processor seconds", cpu),
        ("seconds", clock),
        ("peak memory / file size", [m / size for m in memory]),
    ):
        print(f"| {name} | {min(values):.2f} | {statistics.median(values):.2f} | {max(values):.2f} |")
    if options.output:
        found = {"model": options.model, "bytes": size, "cpu_s": cpu, "s": clock, "peak_bytes": memory}
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
