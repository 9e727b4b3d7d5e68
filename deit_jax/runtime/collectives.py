"""What a compiled program sends between devices, read from its optimized HLO text."""

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

from deit_jax.runtime import hlo

KINDS = "all-reduce all-gather reduce-scatter all-to-all collective-permute".split()
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


def collectives(text: str) -> dict[str, Collective]:
    """{kind: count and bytes} of the collectives in one run of a module; in a loop of known length, by its rounds (of
    unknown length: once)."""
    computations, entry = hlo.computations(text)
    found = {name: [_as_fused(one, name) for one in _found(lines)] for name, lines in computations.items()}
    seen: dict[str, tuple[Found, int]] = {}

    def follow(name: str, times: int) -> None:
        for i, one in enumerate(found.get(name, ())):
            key = one.channel or f"{name} {i}"
            seen[key] = one, max(times, seen.get(key, (one, 0))[1])
        for instruction in computations.get(name, ()):
            called, rounds = hlo.calls(instruction, computations)
            for inner in called:
                follow(inner, times * rounds)

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


def _found(lines: list[hlo.Instruction]) -> Iterator[Found]:
    """The collectives that these lines start."""
    sizes = {one.name: hlo.num_bytes(one.result) for one in lines}
    for one in lines:
        kind = one.operation.removesuffix("-start")
        if kind not in KINDS:
            continue
        given = sum(sizes.get(operand, 0) for operand in one.operands)
        made = sizes[one.name]
        if one.operation != kind and one.result.startswith("(") and kind != "all-reduce":
            made -= given  # an asynchronous start hands its operands on
        channel = CHANNEL.search(one.attributes)
        yield Found(kind, max(given, made), channel[1] if channel else "")
