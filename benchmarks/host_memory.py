"""What keeping freed memory is worth on CPU: a small DeiT's gradient, with and without, in turn, a process each.

python benchmarks/host_memory.py
"""

import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, resource, sys, time
import jax
from flax import nnx
from deit_jax.runtime import host_memory
from deit_jax import models
if sys.argv[1] == "keep":
    host_memory.keep_freed_memory()
build = models.constructor("deit_nano_distilled_patch4_32", num_classes=10)
graphdef, _, _ = models.abstract(build)
params, batch_stats = jax.jit(lambda key: models.init_arrays(build, key))(jax.random.key(0))
images = jax.random.normal(jax.random.key(1), (128, 32, 32, 3))
step = jax.jit(jax.grad(lambda p, x: (nnx.merge(graphdef, p, batch_stats)(x) ** 2).sum()))
for _ in range(2):
    jax.block_until_ready(step(params, images))
before, begun = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
for _ in range(10):
    jax.block_until_ready(step(params, images))
seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
faults = (after.ru_minflt - before.ru_minflt) / 10
print(json.dumps({"wall ms": 100 * seconds, "cpu ms": 100 * cpu, "page faults": faults}))
"""


def main(rounds: int = 5) -> None:
    runs: dict[str, list[dict]] = {"give back": [], "keep": []}
    for _ in range(rounds):
        for how, results in runs.items():
            out = subprocess.run(
                [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
            ).stdout
            results.append(json.loads(out))
    print("| a step | wall ms, min / median / max | cpu ms, median | page faults, median |\n| --- | --- | --- | --- |")
    for how, results in runs.items():
        wall, cpu, faults = ([r[key] for r in results] for key in results[0])
        spread = f"{min(wall):.0f} / {statistics.median(wall):.0f} / {max(wall):.0f}"
        print(f"| {how} | {spread} | {statistics.median(cpu):.0f} | {statistics.median(faults):,.0f} |")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
