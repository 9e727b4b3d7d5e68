"""What a compiled program sends between devices, read from its optimized HLO text."""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = "all-reduce all-gather reduce-scatter all-to-all collective-permute".split()
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
        "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}  # fmt: skip

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|[^ ]+) ([\w-]+)\((.*)")
OPERAND = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often one kind runs, and bytes in all: of what is reduced, gathered or moved on one device, at full size."""

    count: int
    bytes: int


def bytes_sent(found: dict[str, Collective], devices: int) -> float:
    """Bytes that each device sends, with the usual ring algorithms: an all-reduce passes everything round twice."""
    once = (devices - 1) / devices
    return sum(c.bytes * once * (2 if kind == "all-reduce" else 1) for kind, c in found.items())


class Found(NamedTuple):
    """One collective of the text. TPU programs repeat it, by its channel, in every part that runs while it is sent."""

    kind: str
    bytes: int
    channel: str


def collectives(hlo: str) -> dict[str, Collective]:
    """{kind: count and bytes} of the collectives in one run of a module; in a loop of known length, by its rounds (of
    unknown length: once)."""
    computations, entry = _computations(hlo)
    found = {name: [_as_fused(one, name) for one in _found(lines)] for name, lines in computations.items()}
    calls = {name: list(_calls(lines, computations)) for name, lines in computations.items()}
    seen: dict[str, tuple[Found, int]] = {}

    def follow(name: str, times: int) -> None:
        for i, one in enumerate(found.get(name, ())):
            key = one.channel or f"{name} {i}"
            seen[key] = one, max(times, seen.get(key, (one, 0))[1])
        for called, rounds in calls.get(name, ()):
            follow(called, times * rounds)

    follow(entry, 1)
    out = {}
    for kind in KINDS:
        ours = [(one.bytes, times) for one, times in seen.values() if one.kind == kind]
        if ours:
            out[kind] = Collective(sum(t for _, t in ours), sum(b * t for b, t in ours))
    return out


def _as_fused(one: Found, computation: str) -> Found:
    """TPU's reduce-scatter is a fusion of an all-reduce and a slice, in a computation of this name."""
    fused = one.kind == "all-reduce" and computation.startswith("all-reduce-scatter")
    return one._replace(kind="reduce-scatter") if fused else one


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """({computation: its lines}, the entry's name)."""
    computations: dict[str, list[str]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if opening := COMPUTATION.match(line):
            name = opening[2]
            computations[name] = []
            entry = name if opening[1] else entry
        elif name and line.startswith(" "):
            computations[name].append(line)
    return computations, entry


def _found(lines: list[str]) -> Iterator[Found]:
    """The collectives that these lines start."""
    sizes: dict[str, int] = {}
    for line in lines:
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        name, result, operation, rest = instruction.groups()
        sizes[name] = _bytes(result)
        kind = operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        given = sum(sizes.get(operand, 0) for operand in OPERAND.findall(rest.split(")")[0]))
        made = sizes[name]
        if operation != kind and result.startswith("(") and kind != "all-reduce":
            made -= given  # an asynchronous start hands its operands on
        channel = CHANNEL.search(rest)
        yield Found(kind, max(given, made), channel[1] if channel else "")


def _calls(lines: list[str], computations: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """(computation, how often it runs) for each that these lines call."""
    for line in lines:
        rounds = 1
        if " while(" in line:
            condition = CONDITION.search(line)
            trips = TRIPS.search(line)
            rounds = int(trips[1]) if trips else _bound(computations.get(condition[1], []) if condition else [])
        for called in CALLED.findall(line):
            yield called, rounds
        for branches in BRANCHES.findall(line):
            for called in branches.split(","):
                yield called.strip(" %"), 1


def _bound(condition: list[str]) -> int:
    """N of a loop's condition `i < N`, counted from 0 as a scan does; 1 where N is no constant."""
    constants = dict(re.findall(r"%([\w.-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(condition)))
    for line in condition:
        if "compare(" in line and "direction=LT" in line:
            operands = OPERAND.findall(line.partition("compare(")[2].split(")")[0])
            if len(operands) == 2 and operands[1] in constants:
                return int(constants[operands[1]])
    return 1


def _bytes(shapes: str) -> int:
    """Bytes of all arrays in the text of a result, `f32[8,128]{1,0}` or a tuple of such."""
    total = 0
    for dtype, axes in ARRAY.findall(shapes):
        if dtype in BITS:
            count = 1
            for n in filter(None, axes.split(",")):
                count *= int(n)
            total += -(-count * BITS[dtype] // 8)
    return total
