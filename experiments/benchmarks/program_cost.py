"""Reads the cost of a compiled program: memory, bytes moved and collectives."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "d"
"""Name of the axis along which devices share an argument."""
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
"""Instructions that move nothing."""
_SLICES = {"slice", "dynamic-slice", "gather"}
_COLLECTIVES = re.compile(
    r"(?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    r"|collective-broadcast)(?:-start)?"
)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# This leaves out arrays in the memory on a TPU's chip, which are marked as space 1.
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+|f8\w+)\[([\d,]*)\](?!\{[^}]*S\(1\))")


class ProgramCost(NamedTuple):
    """Cost of a compiled program, if each conditional takes its cheaper branch.

    Attributes:
      peak_bytes: largest temporary memory at a time, without arguments and results.
      moved_bytes: bytes that the operations of the program read and write.
      collectives: number of operations that exchange data between devices.
      total_bytes: sum of arguments, results and `peak_bytes`; results in donated memory count once.
    """

    peak_bytes: int
    moved_bytes: int
    collectives: int
    total_bytes: int


def mesh(devices: list[Any]) -> Mesh:
    """Returns the devices as a mesh of one axis, `AXIS`."""
    return Mesh(np.array(devices), (AXIS,))


def compile_for(
    devices: list[Any],
    f: Callable[..., Any],
    *arguments: Any,
    split: Sequence[int] = (),
    donated: Sequence[int] = (),
) -> jax.stages.Compiled:
    """Compiles `f` for devices that may be absent.

    Args:
      devices: devices from `targets.devices`.
      f: the function.
      *arguments: pytrees of arrays, or of anything else with a shape and a dtype.
      split: positions of the arguments whose first axes are spread over the devices. Each device
        holds all of the other arguments.
      donated: positions of the arguments whose memory the results may use.
    """

    def described(number: int, argument: Any) -> Any:
        spec = PartitionSpec(AXIS) if number in split else PartitionSpec()
        sharding = NamedSharding(mesh(devices), spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), argument
        )

    inputs = [described(number, argument) for number, argument in enumerate(arguments)]
    return jax.jit(f, donate_argnums=donated).lower(*inputs).compile()


def read(compiled: jax.stages.Compiled) -> ProgramCost:
    """Returns the cost of a compiled program."""
    text = compiled.as_text() or ""
    memory: Any = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.temp_size_in_bytes
    return ProgramCost(peak, moved_bytes(text), count_collectives(text), held + peak)


def count_collectives(text: str) -> int:
    """Returns the number of collectives in the text of a compiled program."""
    computations, _ = _parse(text)
    conditionals = [i for body in computations.values() for i in body if i.branches]
    dearer = {
        name for i in conditionals for name in i.branches if name != _cheaper(i, computations)
    }
    return sum(
        bool(_COLLECTIVES.fullmatch(instruction.opcode))
        for name, body in computations.items()
        if name not in dearer
        for instruction in body
    )


def residual_bytes(f: Callable[..., Any], *arguments: Any) -> int:
    """Returns the bytes that the reverse mode of `f` saves, as traced, before compilation."""
    pullback = jax.eval_shape(lambda *a: jax.vjp(f, *a)[1], *arguments)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def bytes(self) -> int:
        return sum(_itemsize(kind) * _size(sizes) for kind, sizes in _SHAPE.findall(self.shape))

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", _up_to_closing(self.rest))

    @property
    def branches(self) -> list[str]:
        named = re.search(r"branch_computations=\{(.*?)\}", self.rest)
        listed = named[1] if named else self.rest
        pattern = r"%([\w.\-]+)" if named else r"(?:true|false)_computation=%([\w.\-]+)"
        return re.findall(pattern, listed) if self.opcode == "conditional" else []


_Computations = dict[str, list[_Instruction]]


def moved_bytes(text: str) -> int:
    """Returns the bytes of operands and results, summed over the ENTRY computation.

    Each fusion and each custom call counts once. A conditional counts by its cheaper branch. If a
    fusion only slices an operand, the slices count. Instructions that only name a value count as 0.

    Args:
      text: text of the compiled program.
    """
    computations, entry = _parse(text)
    return _moved(entry, computations)


def _moved(body: list[_Instruction], computations: _Computations) -> int:
    known = {instruction.name: instruction for instruction in body}

    def cost(instruction: _Instruction) -> int:
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            return 0
        if instruction.branches:
            return _moved(computations[_cheaper(instruction, computations)], computations)
        if instruction.opcode in _SLICES:
            return 2 * instruction.bytes
        operands = [known[name].bytes for name in instruction.operands]
        called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
        if instruction.opcode == "fusion" and called:
            reads = _reads(computations[called[1]])
            operands = [min(size, reads.get(i, size)) for i, size in enumerate(operands)]
        return instruction.bytes + sum(operands)

    return sum(map(cost, body))


def _cheaper(conditional: _Instruction, computations: _Computations) -> str:
    """Returns the branch that moves least.

    jbn uses the other branch, which computes statistics again, only for data far from 0.
    """
    return min(conditional.branches, key=lambda name: _moved(computations[name], computations))


def _reads(computation: list[_Instruction]) -> dict[int, int]:
    """Returns the bytes that a fused computation reads of each parameter that it only slices."""
    sliced = {}
    for parameter in (i for i in computation if i.opcode == "parameter"):
        uses = [i for i in computation if parameter.name in i.operands]
        if uses and all(u.opcode in _SLICES and u.operands[0] == parameter.name for u in uses):
            sliced[int(_up_to_closing(parameter.rest))] = sum(use.bytes for use in uses)
    return sliced


def _parse(text: str) -> tuple[_Computations, list[_Instruction]]:
    computations: _Computations = {}
    entry: list[_Instruction] = []
    for is_entry, name, body in _bodies(text.splitlines()):
        computations[name] = body
        if is_entry:
            entry = body
    return computations, entry


def _bodies(lines: list[str]) -> Iterator[tuple[bool, str, list[_Instruction]]]:
    for number, line in enumerate(lines):
        if header := _COMPUTATION.match(line):
            body = []
            for inner in lines[number + 1 :]:
                if inner.startswith("}"):
                    break
                if found := _INSTRUCTION.match(inner):
                    body.append(_Instruction(*found.groups()))
            yield bool(header[1]), header[2], body


def _up_to_closing(rest: str) -> str:
    """Returns the text that an opening parenthesis before `rest` encloses."""
    depth = 1
    for at, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return rest[:at]
    return rest


def _itemsize(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits and not kind.startswith("f8") else 1


def _size(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(",") if size)
