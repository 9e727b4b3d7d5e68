"""The text of an optimized HLO module: its computations, their instructions, and the sizes of arrays."""

import math
import re
from typing import NamedTuple

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
        "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}  # fmt: skip

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (\(.*?\)|[^ ]+) ([\w-]+)\((.*)")
OPERAND = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CONDITION = re.compile(r"condition=%?([\w.-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation: `%name = result operation(operands), attributes`."""

    name: str
    result: str
    operation: str
    operands: list[str]
    attributes: str
    root: bool


def computations(hlo: str) -> tuple[dict[str, list[Instruction]], str]:
    """({computation: its instructions}, the entry's name)."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in hlo.splitlines():
        if opening := COMPUTATION.match(line):
            name = opening[2]
            found[name] = []
            entry = name if opening[1] else entry
        elif name and (parts := INSTRUCTION.match(line)):
            root, instruction, result, operation, rest = parts.groups()
            operands, _, attributes = rest.partition(")")
            if operation == "constant":  # its value stands where operands do
                operands, attributes = "", rest
            found[name].append(
                Instruction(instruction, result, operation, OPERAND.findall(operands), attributes, bool(root))
            )
    return found, entry


def calls(one: Instruction, found: dict[str, list[Instruction]]) -> tuple[list[str], int]:
    """(computations that an instruction runs, how often): a loop's body by its rounds, once where that is unknown."""
    rounds = 1
    if one.operation == "while":
        condition = CONDITION.search(one.attributes)
        trips = TRIPS.search(one.attributes)
        rounds = int(trips[1]) if trips else _bound(found.get(condition[1], []) if condition else [])
    branches = BRANCHES.search(one.attributes)
    return CALLED.findall(one.attributes) + (OPERAND.findall(branches[1]) if branches else []), rounds


def _bound(condition: list[Instruction]) -> int:
    """N of a loop's condition `i < N`, counted from 0 as a scan does; 1 where N is no constant."""
    constants = {one.name: one.attributes.partition(")")[0] for one in condition if one.operation == "constant"}
    for one in condition:
        if one.operation == "compare" and "direction=LT" in one.attributes and one.operands[-1] in constants:
            return int(constants[one.operands[-1]])
    return 1


def shapes(result: str) -> list[tuple[int, ...]]:
    """The shapes of all arrays in the text of a result."""
    return [tuple(int(n) for n in axes.split(",") if n) for _, axes in ARRAY.findall(result)]


def num_bytes(result: str) -> int:
    """Bytes of all arrays in the text of a result, `f32[8,128]{1,0}` or a tuple of such."""
    bits = [BITS.get(dtype, 0) for dtype, _ in ARRAY.findall(result)]
    return sum(-(-math.prod(shape) * width // 8) for shape, width in zip(shapes(result), bits, strict=True))
