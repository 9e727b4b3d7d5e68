"""Where the time of a train step goes, from jax's profiler: by part of the step, by kind of operation, by operation.

    python benchmarks/profile_step.py [--model=deit_tiny_patch16_224] [--batch=32] [--steps=3] [--top=12]
        [--output=FILE] [NAME=VALUE …]

Parts are the scopes of deit_jax/train/step.py. Seconds are summed over the threads (CPU) or streams (GPU) that worked,
so on several cores they exceed the clock's; shares are what to read. NAME=VALUE are settings, as distill.kind=hard.
"""

import collections
import os
import re
import tempfile
from pathlib import Path

from common import changes_of, on_gpu, parser, save, settings, table

WRAPPERS = ("while", "call", "conditional")  # their time is their contents'
PARTS = ("augment", "teacher", "optimizer", "ema")


def kind_of(opcode: str, text: str) -> str:
    """The kind of an instruction; text: its line and, of a fusion, the lines of its computation."""
    if "fmha" in text or "flash" in text:
        return "fused attention"
    if "dot(" in text or "gemm" in text or "__cublas" in text or opcode == "dot":
        batched = re.search(r'lhs_batch_dims=|"lhs_batch_dimensions":\["', text)
        return "batched products (attention)" if batched else "matrix products"
    if "convolution(" in text or "__cudnn$conv" in text:
        return "convolutions"
    if opcode in ("copy", "transpose", "bitcast") or re.fullmatch(r"(copy|transpose|bitcast)[\w_]*fusion", opcode):
        return "copies, transpositions"
    return "elementwise, reductions" if "fusion" in opcode or opcode in ("reduce", "broadcast") else "other"


def part_of(text: str) -> str:
    """The part of the step an instruction belongs to, by the names jax gave what it was made of."""
    names = " ".join(re.findall(r'op_name="([^"]*)"', text))
    for part in PARTS:
        if f"/{part}/" in names or f"({part})" in names:
            return part
    return "backward" if "transpose(" in names else "forward"


def instructions(hlo: str) -> dict[str, tuple[str, str, str]]:
    """{instruction: (part, kind, first op_name)} of a compiled module's text."""
    bodies, current = collections.defaultdict(list), ""
    for line in hlo.splitlines():
        header = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = header[1]
        else:
            bodies[current].append(line)
    found = {}
    for lines in bodies.values():
        for line in lines:
            match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = .*?\s([\w\-]+)\(", line)
            if not match:
                continue
            name, opcode = match.groups()
            called = re.search(r"calls=%?([\w.\-]+)", line)
            text = "\n".join([line, *(bodies[called[1]] if called else [])])
            label = name.rstrip("0123456789.") if opcode == "fusion" else opcode
            op_name = re.search(r'op_name="([^"]*)"', text)
            found[name] = part_of(text), kind_of(label, text), op_name[1] if op_name else ""
            if opcode in WRAPPERS:
                del found[name]
    return found


def main() -> None:
    line = parser(__doc__, model="deit_tiny_patch16_224", batch=32, steps=3, top=12, output="")
    line.add_argument("settings", nargs="*")
    flags = line.parse_args()

    from deit_jax.runtime import host_memory

    if on_gpu():  # kernels that are started as one graph have no names
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    else:
        host_memory.keep_freed_memory()
    import jax

    from deit_jax.benchmark import Workload

    work = Workload(settings({"model.name": flags.model, "batch_size": flags.batch, **changes_of(flags.settings)}))
    for _ in range(6):  # the first ones take their memory from the system
        jax.block_until_ready(work.train())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(flags.steps):
                jax.block_until_ready(work.train())
        path = next(Path(folder).glob("**/*.xplane.pb"))
        profile = jax.profiler.ProfileData.from_file(str(path))

    known = instructions(work.step.as_text())
    seconds: collections.Counter = collections.Counter()
    planes = list(profile.planes)
    for plane in [p for p in planes if p.name.startswith("/device:")] or planes:
        for line in plane.lines:
            for event in line.events:
                op = dict(event.stats).get("hlo_op")
                if op in known:
                    seconds[op] += event.duration_ns / 1e9 / flags.steps
    whole = sum(seconds.values())
    by_part, by_kind = collections.Counter(), collections.Counter()
    for op, spent in seconds.items():
        by_part[known[op][0]] += spent
        by_kind[known[op][1]] += spent

    at = f"{flags.model}, batch {flags.batch}, {jax.devices()[0].device_kind}"
    print(f"{at}: {1e3 * whole:.1f} ms a step, all threads together")
    row = lambda name, spent: [name, f"{1e3 * spent:.1f}", f"{spent / whole:.1%}"]
    for title, counter in (("part", by_part), ("kind of operation", by_kind)):
        print(f"\n{table([title, 'ms', 'share'], [row(*item) for item in counter.most_common()])}")
    rows = [[*row(op, spent), known[op][2][-90:]] for op, spent in seconds.most_common(flags.top)]
    print(f"\n{table(['operation', 'ms', 'share', 'of'], rows)}")
    save(flags.output, flags=vars(flags), parts=by_part, kinds=by_kind, operations=dict(seconds.most_common(100)))


if __name__ == "__main__":
    main()
