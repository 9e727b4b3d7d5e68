"""A bound on a GPU program's speed: which kernels run, and what each at least computes and moves.

Read from the optimized HLO text. A kernel takes at least the longer of its arithmetic at the device's peak and its
bytes at the device's memory bandwidth: each input read once and each output written once, of what is sliced or written
in place the slice. Caches can make that a little less, everything else makes it more.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from deit_jax.runtime import hlo

PARTS = "teacher augment optimizer attention mlp norm".split()  # named scopes of the step; the first that an op is in
# instructions that run no kernel
FREE = set("parameter get-tuple-element tuple bitcast constant after-all partition-id replica-id opt-barrier".split())
NESTED = {"while", "call", "conditional", "async-start"}
# fusions of these alone move values and change none
MOVES = FREE | set("copy transpose reshape broadcast slice dynamic-slice dynamic-update-slice concatenate pad".split())
SLICES = {"slice", "dynamic-slice", "gather"}
IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # write one operand into the memory of the first
CONTRACTED = re.compile(r'lhs_contracting_dim(?:ension)?s"?[=:] ?[{[]([\d, "]*)')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
SCORES = re.compile(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([\d", ]*)\]')
LABELS = re.compile(r"dim_labels=\w+_(\w+)->")
WORKSPACE = re.compile(r"[su]8\[\d+\]\{0\}\)$")  # a library call's last result
SCOPE = re.compile(r'op_name="([^"]*)"')

Computations = dict[str, list[hlo.Instruction]]


class Kernel(NamedTuple):
    """One kernel of a program.

    Attributes:
        kind: "products" (convolutions too), "attention" (fused), "elementwise" (reductions too), "copies".
        part: one of PARTS, or "other".
        times: how often it runs.
        flops, bytes: of one run.
    """

    name: str
    kind: str
    part: str
    times: int
    flops: int
    bytes: int

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The least time of all of its runs, at `peak` FLOP/s and `bandwidth` bytes/s."""
        return self.times * max(self.flops / peak, self.bytes / bandwidth)


class Total(NamedTuple):
    """What some kernels do together, at least."""

    kernels: int
    bytes: int
    seconds: float


def kernels(text: str) -> list[Kernel]:
    """The kernels of one run of a module, without collectives; of branches, those that move most."""
    found, entry = hlo.computations(text)

    def run(name: str, times: int) -> list[Kernel]:
        sizes = {one.name: one.result for one in found.get(name, ())}
        out = []
        for one in found.get(name, ()):
            if one.operation in NESTED:
                inner, rounds = hlo.calls(one, found)
                ways = [run(called, times * rounds) for called in inner]
                out += max(ways, key=lambda way: sum(k.times * k.bytes for k in way), default=[])
            elif one.operation not in FREE and not one.operation.endswith(("-start", "-done")) and not _sends(one):
                out.append(_kernel(one, sizes, found, times))
        return out

    return run(entry, 1)


def total(some: Iterable[Kernel], peak: float, bandwidth: float) -> Total:
    """The sum over these kernels."""
    some = list(some)
    return Total(
        sum(k.times for k in some),
        sum(k.times * k.bytes for k in some),
        sum(k.seconds(peak, bandwidth) for k in some),
    )


def totals(some: Sequence[Kernel], by: Callable[[Kernel], str], peak: float, bandwidth: float) -> dict[str, Total]:
    """{group: its sum}, the longest first. by: a kernel's group."""
    groups = {by(k) for k in some}
    sums = {group: total((k for k in some if by(k) == group), peak, bandwidth) for group in groups}
    return dict(sorted(sums.items(), key=lambda entry: -entry[1].seconds))


def part_of(op_name: str) -> str:
    """The part of the step that an instruction's `op_name` belongs to: the first of PARTS that is a scope of it."""
    scopes = set(re.split(r"[/()]", op_name))
    return next((part for part in PARTS if part in scopes), "other")


def _sends(one: hlo.Instruction) -> bool:
    return one.operation.startswith(("all-", "reduce-scatter", "collective-"))


def _kernel(one: hlo.Instruction, sizes: dict[str, str], found: Computations, times: int) -> Kernel:
    inner = hlo.calls(one, found)[0] if one.operation == "fusion" else []
    body = found[inner[0]] if inner else []
    flops = _flops(one, sizes) + sum(_flops(op, {op.name: op.result for op in body}) for op in body)
    moved = _fusion_bytes(one, body) if body else _bytes(one, sizes)
    target = TARGET.search(one.attributes)
    if target and "fmha" in target[1]:
        kind = "attention"
    elif flops or (target and ("gemm" in target[1] or "matmul" in target[1])):
        kind = "products"
    else:
        moving = {op.operation for op in body} if body else {one.operation}
        kind = "copies" if moving <= MOVES else "elementwise"
    scope = SCOPE.search(one.attributes)
    return Kernel(one.name, kind, part_of(scope[1] if scope else ""), times, flops, moved)


def _bytes(one: hlo.Instruction, sizes: dict[str, str]) -> int:
    """Bytes of an instruction that is a kernel by itself."""
    given = [hlo.num_bytes(sizes.get(name, "")) for name in one.operands]
    made = hlo.num_bytes(WORKSPACE.sub("", one.result))
    if one.operation in SLICES:
        return 2 * made
    if one.operation in IN_PLACE:
        return 2 * given[IN_PLACE[one.operation]]
    return sum(given) + made


def _fusion_bytes(fusion: hlo.Instruction, body: list[hlo.Instruction]) -> int:
    """Bytes of a fusion: its parameters, or the slices that are read of them, and its results, or what is written in
    place of them."""
    by_name = {op.name: op for op in body}
    users: dict[str, list[hlo.Instruction]] = {}
    for op in body:
        for name in op.operands:
            users.setdefault(name, []).append(op)

    def read(op: hlo.Instruction) -> int:
        """Bytes that are read of the array `op`, which its users slice or take whole."""
        whole, out = hlo.num_bytes(op.result), 0
        for user in users.get(op.name, ()):
            first = user.operands[0] == op.name
            if user.operation in SLICES and first:
                out += hlo.num_bytes(user.result)
            elif user.operation == "bitcast":
                out += read(user)
            elif user.operation not in IN_PLACE or not first:
                return whole
        return min(out, whole)

    def written(op: hlo.Instruction) -> int:
        if op.operation == "tuple":
            return sum(written(by_name[name]) for name in op.operands)
        if op.operation == "bitcast":
            return written(by_name[op.operands[0]])
        at = IN_PLACE.get(op.operation)
        return hlo.num_bytes(by_name[op.operands[at]].result if at else op.result)

    return sum(read(op) for op in body if op.operation == "parameter") + sum(written(op) for op in body if op.root)


def _flops(one: hlo.Instruction, sizes: dict[str, str]) -> int:
    """Arithmetic of a product, convolution or fused attention; 0 of everything else."""
    target = TARGET.search(one.attributes)
    name = target[1] if target else ""
    operand = lambda i: hlo.shapes(sizes.get(one.operands[i], ""))[0]
    result = hlo.shapes(one.result)[0] if hlo.shapes(one.result) else ()
    if one.operation == "dot" or "$gemm" in name or "$lt$matmul" in name:
        contracted = CONTRACTED.search(one.attributes)
        axes = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
        return 2 * math.prod(result) * math.prod(operand(0)[axis] for axis in axes)
    if (one.operation == "convolution" or "$conv" in name) and (labels := LABELS.search(one.attributes)):
        # by the forward convolution, whose arithmetic its two gradients have too
        output, kernel = {"Filter": (operand(1), result), "Input": (operand(0), operand(1))}.get(
            name.partition("Backward")[2], (result, operand(1))
        )
        return 2 * math.prod(output) * math.prod(kernel) // kernel[labels[1].index("o")]
    if "fmha" in name and (scores := SCORES.search(one.attributes)):
        # two products of all queries and keys; in the gradient five
        pairs = [int(n) for n in re.findall(r"\d+", scores[1])]
        return (10 if "Backward" in name else 4) * math.prod(operand(0)) * pairs[-1]
    return 0
