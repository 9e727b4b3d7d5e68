"""What a train step needs of each chip as TPUs are added at a constant number of images per chip, compiled by libtpu.

    python benchmarks/weak_scaling.py --output=results/weak_scaling.jsonl [--model=deit_base_patch16_224] [--images=64]
        [--topologies=v5e:1,v5e:2x2,v5e:4x4,v5e:8x8,v5e:16x16] [--meshes=data,fsdp] [NAME=VALUE …]
    python benchmarks/weak_scaling.py --output=results/weak_scaling.jsonl --table

No TPU is needed, only `pip install libtpu` (Linux, x86-64). Each case is compiled in a process of its own, and its
result is a line of `--output` as soon as it is there; cases that the file holds are not compiled again, so that several
of these may run at once and a stopped one goes on. `v5e:1` is one chip of v5e:2x2, the smallest grid libtpu knows.
`--table` prints what the file holds as Markdown.
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import ROOT, changes_of, parser, settings, table

MESHES = {"data": {}, "fsdp": {"mesh.fsdp": -1}, "fsdp16": {"mesh.fsdp": 16}}  # the last: 16 chips share a state
GIB = 2**30
VERSIONS = ("jax", "libtpu", "flax", "optax")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The case and what its compiled train step needs, bytes per chip; runs in a process of its own.

    Args:
        case: model, images (per chip), topology, mesh (a name of MESHES), settings ({name: value}).
    """
    from deit_jax.runtime import topologies

    chip, _, grid = case["topology"].partition(":")
    alone = grid == "1"
    topologies.prepare_environment(f"{chip}:2x2" if alone else case["topology"])
    from deit_jax import plan
    from deit_jax.runtime.collectives import bytes_sent

    devices = topologies.topology_devices(f"{chip}:2x2" if alone else case["topology"])
    devices = devices[:1] if alone else devices
    changes = {"model.name": case["model"], "batch_size": case["images"] * len(devices), **MESHES[case["mesh"]]}
    config = settings(changes | case["settings"])
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    found: dict[str, Any] = {**case, "chips": len(devices), "kind": devices[0].device_kind, "versions": versions}
    try:
        p = plan.make_plan(config, devices)
    except plan.DoesNotFit:
        return found | {"fits": False, "needed": None}
    return found | {
        "fits": p.fits,
        "needed": p.needed,
        "arguments": p.arguments,
        "temporaries": p.temporaries,
        "parameters": p.parameters,
        "flops": p.flops,
        "sent": bytes_sent(p.collectives, p.devices),
        "collectives": {name: [c.count, c.bytes] for name, c in p.collectives.items()},
        "compile_s": round(p.compile_seconds, 1),
    }


def key_of(record: dict[str, Any]) -> str:
    """What tells cases apart."""
    return json.dumps([record[name] for name in ("model", "images", "topology", "mesh", "settings")])


def read(output: Path) -> list[dict[str, Any]]:
    """The results there are."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def run(case: dict[str, Any], output: Path) -> None:
    """Measure one case and append it, unless it is there."""
    if key_of(case) in map(key_of, read(output)):
        return
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        print(f"{case['topology']} {case['mesh']}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return
    line = done.stdout.splitlines()[-1]
    with open(output, "a") as file:
        file.write(f"{line}\n")
    print(line, flush=True)


def print_table(records: list[dict[str, Any]]) -> None:
    """Memory, what is sent, and the two terms of the plan's forecast, per chip and step."""
    from deit_jax.runtime import hardware

    rows = []
    order = lambda r: (r["model"], r["kind"], r["images"], str(r["settings"]), r["chips"], r["mesh"])
    for r in sorted(records, key=order):
        row = [r["model"], r["topology"], f"{r['chips']}", f"{r['images']}", r["mesh"], flags_of(r["settings"])]
        if "arguments" not in r:
            needed = f"{r['needed'] / GIB:.2f}" if r["needed"] else "more than there is"
            rows.append([*row, "", "", f"{needed}: does not fit", *[""] * 4])
            continue
        chip = hardware.accelerator(r["kind"])
        assert chip is not None
        whole = 4 * r["parameters"]
        sizes = ", ".join(f"{name} {size / whole:.2f}" for name, (_, size) in r["collectives"].items())
        row += [f"{r[key] / GIB:.2f}" for key in ("arguments", "temporaries")]
        row += [f"{r['needed'] / GIB:.2f}" + ("" if r["fits"] else ": does not fit"), sizes, f"{r['sent'] / GIB:.2f}"]
        row += [f"{1e3 * r['sent'] / chip.link:.1f}", f"{1e3 * r['flops'] / (r['chips'] * chip.peak / 2):.0f}"]
        rows.append(row)
    heads = ["model", "topology", "chips", "images per chip", "mesh", "settings", "state and batch, GiB"]
    heads += ["temporaries, GiB", "together, GiB", "collectives / parameters", "sent, GiB", "sending, ms"]
    print(table([*heads, "arithmetic, ms"], rows))


def flags_of(changes: dict[str, Any]) -> str:
    """Settings as words."""
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def main() -> None:
    grids = {"topologies": "v5e:1,v5e:2x2,v5e:4x4,v5e:8x8,v5e:16x16", "meshes": "data,fsdp"}
    line = parser(__doc__, model="deit_base_patch16_224", images=64, **grids)
    line.add_argument("--output", type=Path, help="JSON lines, added to")
    line.add_argument("--table", action="store_true", help="print what the file holds")
    line.add_argument("--case", type=json.loads, help="what each process measures")
    line.add_argument("settings", nargs="*")
    flags = line.parse_args()
    if flags.case:
        print(json.dumps(measure(flags.case)))
        return
    if not flags.output:
        line.error("--output is missing")
    if flags.table:
        print_table(read(flags.output))
        return
    for topology in flags.topologies.split(","):
        for mesh in ["data"] if topology.endswith(":1") else flags.meshes.split(","):  # one chip has nothing to split
            case = {"model": flags.model, "images": flags.images, "topology": topology, "mesh": mesh}
            run(case | {"settings": changes_of(flags.settings)}, flags.output)


if __name__ == "__main__":
    main()
