"""A compiled program's memory, as XLA planned it: which bytes hold what, and while what runs.

XLA decides before a program runs where every intermediate array lies. It can be read off the
executable: the buffer assignment (allocations, and the buffers in them with offset and size) and
the scheduled program (instructions in the order in which they run, with the name scope and the
source line of the JAX operation that each came from). Both are protocol buffers; the few fields
that matter here are decoded below, after ``xla/service/hlo.proto``.

A buffer is *live* from the instruction that defines it to the last that uses it, under whatever
name: a tuple's element, a loop's carry and what is updated in place are the same buffer.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax

from functional_bp import _jax
from functional_bp.layouts.topology import platform_of
from functional_bp.memory.compiled_flops import compiled_flops


class AllocationKind(enum.StrEnum):
    """An allocation is of one of these kinds."""

    ARGUMENT = "argument"
    OUTPUT = "output"
    TEMPORARY = "temporary"
    CONSTANT = "constant"


class HloInstruction(NamedTuple):
    """An instruction is one operation of the compiled program.

    Attributes:
        name: XLA's own.
        opcode: XLA's: "dot", "fusion", "while", …
        path: JAX's name stack and operation: ``jit(loss)/encoder/layer0/tanh``.
        source: the person's file and line, None where unknown.
    """

    name: str
    opcode: str
    path: str
    source: tuple[str, int] | None


@dataclass(frozen=True, eq=False)
class Buffer:
    """A buffer holds one array from its definition to its last use.

    Attributes:
        offset, bytes: where in its allocation, and how long.
        type: dtype and shape, ``f32[4,3]``.
        origin: the instruction whose value it holds.
        spans: first and last position in the schedule; of what enters the branches of a
            conditional, one such span in each, since they exclude each other.
        users: the instructions that read it.
        argument: the name of the program's argument that it is a copy of, "" for none.
    """

    offset: int
    bytes: int
    type: str
    origin: HloInstruction
    spans: tuple[tuple[int, int], ...]
    users: tuple[HloInstruction, ...] = field(repr=False, default=())
    argument: str = ""

    def is_live(self, position: int) -> bool:
        """Say whether it is needed while the instruction there runs."""
        return any(first <= position <= last for first, last in self.spans)


@dataclass(frozen=True, eq=False)
class Allocation:
    """An allocation is a piece of memory that the program needs from its start to its end.

    Attributes:
        bytes: its size.
        kind: what it is for.
        argument: the argument's name as JAX gives it (``params['W']``), "" for what is none, or
            has none: an array that the function closes over.
        type: of an argument; "" of others.
        buffers: what lies in it.
        is_donated: an argument whose memory an output takes over.
    """

    bytes: int
    kind: AllocationKind
    argument: str
    type: str
    buffers: tuple[Buffer, ...]
    is_donated: bool = False


@dataclass(frozen=True, eq=False)
class CompiledProgram:
    """A compiled program's memory on one device.

    Attributes:
        argument_bytes, output_bytes, temporary_bytes, donated_bytes: XLA's own sums; what is
            donated counts among arguments and outputs both.
        allocations: empty where the platform does not tell (TPU).
        instructions: in the order in which they run, a loop's body once.
        flops: floating-point operations, a loop's body as often as it runs; None where XLA does not
            know how often that is.
        platform: that it was compiled for: ``CPU``, ``NVIDIA H200``, ``TPU v5 lite``.
    """

    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    donated_bytes: int
    allocations: tuple[Allocation, ...]
    instructions: tuple[HloInstruction, ...]
    flops: int | None = None
    platform: str = ""

    @property
    def peak_bytes(self) -> int:
        """Return what the program needs at once: arguments, outputs, temporaries and constants."""
        own = self.temporary_bytes + self.constant_bytes
        return self.argument_bytes + self.output_bytes + own - self.donated_bytes

    @cached_property
    def constant_bytes(self) -> int:
        """Return the bytes of arrays that are part of the program; 0 where it is not told."""
        return sum(a.bytes for a in self.allocations if a.kind is AllocationKind.CONSTANT)

    @cached_property
    def temporaries(self) -> tuple[Buffer, ...]:
        """Return the buffers of the temporary allocations."""
        return tuple(
            b for a in self.allocations if a.kind is AllocationKind.TEMPORARY for b in a.buffers
        )

    @cached_property
    def live_bytes(self) -> tuple[int, ...]:
        """Return the bytes of temporaries that hold a value, for each position."""
        change = [0] * (len(self.instructions) + 1)
        for buffer in self.temporaries:
            for first, last in buffer.spans:
                change[first] += buffer.bytes
                change[last + 1] -= buffer.bytes
        total, sums = 0, []
        for step in change[:-1]:
            total += step
            sums.append(total)
        return tuple(sums)

    @cached_property
    def peak(self) -> int:
        """Return the position at which most bytes of temporaries are live, the last of these."""
        live = self.live_bytes
        return max(range(len(live)), key=lambda position: (live[position], position), default=0)

    def live_at(self, position: int) -> list[Buffer]:
        """Return the temporaries that hold a value while the instruction there runs."""
        return [b for b in self.temporaries if b.is_live(position)]


def program_of(compiled: Any) -> CompiledProgram:
    """Read the memory of a compiled program, without running it.

    Args:
        compiled: what ``jax.jit(f).lower(...).compile()`` returns.
    """
    stats = compiled.memory_analysis()
    sums = (
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.alias_size_in_bytes,
    )
    assignment = getattr(stats, "serialized_buffer_assignment_proto", b"")
    platform = platform_of(_device(compiled))
    if not assignment:
        return CompiledProgram(*sums, (), (), platform=platform)
    module = compiled.runtime_executable().hlo_modules()[0]
    schedule = _Schedule(_fields(module.as_serialized_hlo_module_proto()))
    allocations = _allocations(_fields(assignment), schedule)
    return CompiledProgram(*sums, allocations, schedule.in_order, _flops_of(compiled), platform)


def _device(compiled: Any) -> Any:
    """Return a device that a program was compiled for, which may not be here."""
    places = jax.tree.leaves(compiled.output_shardings)  # those of inputs fail in JAX 0.10
    devices = places[0].device_set if places else jax.devices()
    return min(devices, key=lambda device: device.id)


def _flops_of(compiled: Any) -> int | None:
    try:
        return compiled_flops(compiled)
    except ValueError:  # a loop that ends by itself
        return None


Fields = dict[int, list[Any]]


def _fields(message: bytes) -> Fields:
    """Decode a protocol buffer's fields by number: integers, and bytes of what is longer."""
    found: Fields = defaultdict(list)
    for number, value in _entries(memoryview(message)):
        found[number].append(value)
    return found


def _entries(message: memoryview) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            length, at = _varint(message, at) if wire == 2 else (8 if wire == 1 else 4, at)
            value, at = message[at : at + length], at + length
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varints(parts: Iterable[Any]) -> list[int]:
    """Decode a repeated integer, packed or not."""
    found: list[int] = []
    for part in parts:
        if isinstance(part, int):
            found.append(part)
            continue
        at = 0
        while at < len(part):
            value, at = _varint(part, at)
            found.append(value)
    return found


def _text(fields: Fields, number: int) -> str:
    return bytes(fields[number][0]).decode() if number in fields else ""


def _number(fields: Fields, number: int, default: int = 0) -> int:
    return fields[number][0] if number in fields else default


# xla_data.proto's PrimitiveType, as JAX writes them short.
_DTYPES = {
    1: "bool", 2: "i8", 3: "i16", 4: "i32", 5: "i64", 6: "u8", 7: "u16", 8: "u32", 9: "u64",
    10: "f16", 11: "f32", 12: "f64", 15: "c64", 16: "bf16", 18: "c128",
}  # fmt: skip
_TUPLE = 13
# Instructions that give a buffer another name, and read nothing of it.
_NAMES_ONLY = {"tuple", "get-tuple-element", "bitcast", "parameter"}
# Instructions that write what they read in another order or dtype.
_COPIES = {"bitcast", "copy", "reshape", "transpose", "reverse", "convert"}
# Instructions whose own source says less than that of what they move.
_MOVERS = _COPIES | {
    "broadcast", "tuple", "parameter", "get-tuple-element", "while", "conditional", "call",
    "constant",
}  # fmt: skip


class _Node(NamedTuple):
    """One instruction as the module has it, with what the schedule needs."""

    instruction: HloInstruction
    shape: Fields
    operands: list[int]
    called: list[int]
    computation: int
    number: int  # of a parameter
    element: int  # of a tuple, that it takes


class _Schedule:
    """The scheduled module: its instructions by id, and the order in which they run."""

    def __init__(self, module: Fields) -> None:
        files = _fields(module[17][0]) if 17 in module else {}
        self._frames = _Frames(files)
        self.nodes: dict[int, _Node] = {}
        self.roots: dict[int, int] = {}
        self.by_name: dict[str, int] = {}
        self.parameters: dict[int, dict[int, int]] = defaultdict(dict)
        for part in module[3]:
            self._add(_fields(part))
        self._sequences: dict[int, list[int]] = {}
        for part in _fields(module[7][0])[1] if 7 in module else ():
            entry = _fields(part)
            ids = _fields(entry[2][0])[1] if 2 in entry else ()
            self._sequences[_number(entry, 1)] = _varints(ids)
        order: list[int] = []
        self._entry = _number(module, 6)
        self.alternatives: list[tuple[int, list[Span]]] = []
        self._lay_out(self._entry, order)
        self.positions = {instruction: i for i, instruction in enumerate(order)}
        self.in_order = tuple(self.nodes[i].instruction for i in order)
        self.end = max(len(order) - 1, 0)
        self.entry_root = self.roots.get(self._entry)
        self.users: dict[int, list[int]] = defaultdict(list)
        self.callers: dict[int, list[int]] = defaultdict(list)
        self.conditions: set[int] = set()
        self.defined: set[Location] = set()  # where values begin, as the assignment says
        for i in order:
            for operand in self.nodes[i].operands:
                self.users[operand].append(i)
            if self.nodes[i].instruction.opcode in ("while", "conditional", "call"):
                for called in self.nodes[i].called:
                    self.callers[called].append(i)
            if self.nodes[i].instruction.opcode == "while":
                self.conditions.update(c for c in self.nodes[i].called if self._is_truth(c))

    def _add(self, computation: Fields) -> None:
        here = _number(computation, 5)
        self.roots[here] = _number(computation, 6)
        for part in computation[2]:
            fields = _fields(part)
            meta = _fields(fields[7][0]) if 7 in fields else {}
            instruction = HloInstruction(
                _text(fields, 1), _text(fields, 2), _text(meta, 2), self._frames.place(meta)
            )
            identity, number = _number(fields, 35), _number(fields, 9)
            self.nodes[identity] = _Node(
                instruction, _fields(fields[3][0]), _varints(fields.get(36, ())),
                _varints(fields.get(38, ())), here, number, _number(fields, 13),
            )  # fmt: skip
            self.by_name[instruction.name] = identity
            if instruction.opcode == "parameter":
                self.parameters[here][number] = identity

    def _lay_out(self, computation: int, order: list[int]) -> None:
        """Append the instructions of a computation, those of what it calls before the call."""
        for identity in self._sequences.get(computation, ()):
            node = self.nodes[identity]
            inside: list[Span] = []
            for called in node.called:
                if called in self._sequences:
                    begin = len(order)
                    self._lay_out(called, order)
                    inside.append((begin, len(order) - 1))
            if node.instruction.opcode == "conditional":
                self.alternatives.insert(0, (len(order), inside))  # outer ones first
            order.append(identity)

    def _is_truth(self, computation: int) -> bool:
        return self.type_of(self.roots[computation], ()) == "bool[]"

    def type_of(self, identity: int, index: Sequence[int]) -> str:
        """Write the type of an instruction's value, or of an element of the tuple that it is."""
        shape = self.nodes[identity].shape
        for i in index:
            shape = _fields(shape[4][i])
        kind = _number(shape, 2)
        if kind == _TUPLE:
            return "tuple"
        dims = ",".join(map(str, _varints(shape.get(3, ()))))
        return f"{_DTYPES.get(kind, 'array')}[{dims}]"

    def origin(self, locations: Sequence[int]) -> tuple[HloInstruction, str]:
        """Find the instruction that says best what lies in a buffer: who writes its content.

        What a loop stacks is allocated before it, filled with zeros, and written in its body by
        an update in place; the value that is written there says what it is.

        Returns:
            That instruction; and the name of the argument that the buffer is a copy of, or "".
        """
        here = [i for i in locations if i in self.positions]
        for identity in here:
            moved = self._written(identity)
            if moved is not None:
                return self.nodes[moved].instruction, ""
        makers = [i for i in here if self.nodes[i].instruction.opcode not in _MOVERS]
        best = (makers or here or list(locations))[0]
        moved = self._moved(best)
        given = self.nodes[moved]
        if given.instruction.opcode != "parameter":
            return given.instruction, ""
        is_argument = given.computation == self._entry
        return self.nodes[best].instruction, given.instruction.path if is_argument else ""

    def told(self, instruction: HloInstruction, users: Sequence[HloInstruction]) -> HloInstruction:
        """Return the instruction in the scope and line of a reader, where XLA gave it none."""
        reader = next((u for u in users if u.path.startswith("jit(")), None)
        if instruction.path or instruction.opcode == "parameter" or reader is None:
            return instruction
        node, opcode = self.nodes[self.by_name[instruction.name]], instruction.opcode
        if opcode == "fusion" and node.called:
            opcode = self.nodes[self.roots[node.called[0]]].instruction.opcode
        path = f"{reader.path.rpartition('/')[0]}/{opcode}"
        return instruction._replace(path=path, source=reader.source)

    def argument(self, number: int) -> tuple[str, str]:
        """Return the name and the type of an argument of the program."""
        identity = self.parameters[self._entry].get(number)
        if identity is None:
            return "", ""
        return self.nodes[identity].instruction.path, self.type_of(identity, ())

    def spread(self, start: Location) -> Iterator[Location]:
        """Follow a value from where it is defined through everything that passes it on.

        A loop's carry is another value in the same bytes: there the way ends.
        """
        found, todo = {start}, [start]
        while todo:
            location = todo.pop()
            yield location
            new = {place for place in self._passed_on(*location) if place not in found}
            found |= new
            todo += [place for place in new if place not in self.defined]
            yield from (place for place in new if place in self.defined and self._enters(place))

    def _enters(self, place: Location) -> bool:
        """Say whether a value lives until there as it enters a loop, for the carry to take over."""
        node = self.nodes[place[0]]
        return node.instruction.opcode == "parameter" and node.computation not in self.conditions

    def _passed_on(self, identity: int, index: tuple[int, ...]) -> Iterator[Location]:
        """Yield where a value stands in the users of its instruction, and around its graph."""
        node = self.nodes[identity]
        if identity == self.roots[node.computation] and node.computation not in self.conditions:
            yield from ((caller, index) for caller in self.callers[node.computation])
        for user in dict.fromkeys(self.users[identity]):
            reader = self.nodes[user]
            opcode = reader.instruction.opcode
            places = [k for k, operand in enumerate(reader.operands) if operand == identity]
            if opcode == "tuple":
                yield from ((user, (k, *index)) for k in places)
            elif opcode == "get-tuple-element" and index[:1] == (reader.element,):
                yield user, index[1:]
            elif opcode in ("bitcast", "optimization-barrier"):
                yield user, index
            elif opcode == "while":
                yield user, index
                yield from ((self.parameters[c][0], index) for c in reader.called)
            elif opcode == "conditional":  # the first operand chooses the branch
                called = ((k, reader.called[k - 1]) for k in places if k)
                yield from ((self.parameters[c][0], index) for _, c in called)
            elif opcode == "call":
                yield from ((self.parameters[reader.called[0]][k], index) for k in places)

    def readers(self, locations: Iterable[Location]) -> list[int]:
        """List the instructions that read a value and do not only pass it on."""
        users = (user for i, _ in locations for user in self.users[i])
        silent = _NAMES_ONLY | {"while", "call", "conditional"}
        return [u for u in dict.fromkeys(users) if self.nodes[u].instruction.opcode not in silent]

    def spans(self, start: Location) -> tuple[tuple[int, int], ...]:
        """Return the positions between which a value is needed."""
        places = list(self.spread(start))
        own = [place for place in places if place == start or place not in self.defined]
        at = [self.positions[i] for i, _ in places if i in self.positions]
        at += [self.positions[user] for user in self.readers(own)]
        if any(i == self.entry_root for i, _ in own):
            at.append(self.end)
        computation = self.nodes[start[0]].computation
        if computation in self.conditions and start[0] in self.parameters[computation].values():
            at.append(self.positions[self.roots[computation]])  # the loop goes on with it
        spans = [(min(at, default=0), max(at, default=0))]
        for end, branches in self.alternatives:
            spans = [part for span in spans for part in _divided(span, end, branches, at)]
        return tuple(spans)

    def _written(self, identity: int) -> int | None:
        """Return what an update in place writes; None of another instruction."""
        node = self.nodes[identity]
        inner = identity
        if node.instruction.opcode == "fusion" and node.called:
            inner = self.roots[node.called[0]]
        if self.nodes[inner].instruction.opcode != "dynamic-update-slice":
            return None
        written = self._moved(self.nodes[inner].operands[1], identity)
        path, operands = self.nodes[written].instruction.path, self.nodes[written].operands
        if operands and path.endswith("jit(dynamic_update_index_in_dim)/broadcast_in_dim"):
            return self._moved(operands[0], identity)  # alike in every entry
        return written

    def _moved(self, identity: int, fusion: int | None = None) -> int:
        """Follow what only moves a value back to what made it, into a fusion and out of it."""
        for _ in range(50):
            node = self.nodes[identity]
            if fusion is None and (root := self._fused(node)) is not None:
                identity, fusion = root, identity
            elif node.instruction.opcode == "parameter" and fusion is not None:
                identity, fusion = self.nodes[fusion].operands[node.number], None
            elif node.instruction.opcode in _COPIES:
                identity = node.operands[0]
            elif (carried := self._carried(node)) is not None and carried != identity:
                identity = carried
            else:
                return identity
        return identity

    def _fused(self, node: _Node) -> int | None:
        """Return what makes the one value of a fusion; its own metadata is that of any in it."""
        if node.instruction.opcode != "fusion" or not node.called:
            return None
        root = self.roots[node.called[0]]
        inner = self.nodes[root].instruction
        tells = inner.path and inner.opcode != "tuple"
        return root if tells or inner.opcode in _COPIES else None

    def _carried(self, node: _Node) -> int | None:
        """For an element of a loop's carry: what makes the next one, at the end of the body."""
        if node.instruction.opcode != "get-tuple-element":
            return None
        source = self.nodes[node.operands[0]]
        bodies = source.called if source.instruction.opcode == "while" else [source.computation]
        if source.instruction.opcode not in ("while", "parameter"):
            return None
        for body in bodies:
            root = self.nodes[self.roots[body]]
            if root.instruction.opcode == "tuple" and node.element < len(root.operands):
                return root.operands[node.element]
        return None


Span = tuple[int, int]


def _divided(span: Span, end: int, branches: Sequence[Span], at: Sequence[int]) -> Iterator[Span]:
    """Divide a span that ends in the branches of a conditional into one for each branch."""
    first, last = span
    start = branches[0][0]
    if not first < start <= last < end:
        yield span
        return
    yield first, start - 1
    for begin, stop in branches:
        inside = [position for position in at if begin <= position <= stop]
        if inside:
            yield begin, max(inside)


class _Frames:
    """The module's table of stack frames: a file and a line by number."""

    def __init__(self, index: Fields) -> None:
        self._files = [bytes(f).decode() for f in index.get(1, ())]
        self._locations = [_fields(part) for part in index.get(3, ())]
        self._stack = [_fields(part) for part in index.get(4, ())]

    def place(self, meta: Fields) -> tuple[str, int] | None:
        if 3 in meta:  # older compilers write it at each instruction
            return _jax.innermost([(_text(meta, 3), _number(meta, 4))])
        return _jax.innermost(self._outward(_number(meta, 15)))

    def _outward(self, frame: int) -> Iterator[tuple[str, int]]:
        while 0 < frame <= len(self._stack):
            location, frame = _number(self._stack[frame - 1], 1), _number(self._stack[frame - 1], 2)
            fields = self._locations[location - 1]
            yield self._files[_number(fields, 1) - 1], _number(fields, 3)


def _allocations(assignment: Fields, schedule: _Schedule) -> tuple[Allocation, ...]:
    values: dict[int, tuple[int, Location]] = {}  # by identity: size, and where it is defined
    names: dict[int, list[Location]] = defaultdict(list)  # where values in the same bytes begin
    for part in assignment.get(1, ()):
        logical = _fields(part)
        place = _location(_fields(logical[3][0]), schedule)
        values[_number(logical, 1)] = _number(logical, 2), place
        schedule.defined.add(place)
    for part in assignment.get(2, ()):
        alias = _fields(part)
        names[_number(alias, 1)].append(_location(_fields(alias[2][0]), schedule))
    found: list[Allocation] = []
    for part in assignment.get(3, ()):
        fields = _fields(part)
        if _number(fields, 3):  # of one thread, on its stack
            continue
        buffers = []
        for assigned in map(_fields, fields.get(9, ())):
            identity, offset = _number(assigned, 1), _number(assigned, 2)
            size, start = values[identity]
            if size and start[0] in schedule.nodes:
                same = [start, *names[identity]]
                buffers.append(_buffer(offset, size, start, same, schedule))
        is_argument, is_output = bool(_number(fields, 5)), bool(_number(fields, 7))
        place = (
            AllocationKind.ARGUMENT if is_argument
            else AllocationKind.CONSTANT if _number(fields, 12)
            else AllocationKind.OUTPUT if is_output
            else AllocationKind.TEMPORARY
        )  # fmt: skip
        name, type = schedule.argument(_number(fields, 6)) if is_argument else ("", "")
        filled = tuple(_handed_over(buffers))
        is_donated = is_argument and is_output
        found.append(Allocation(_number(fields, 2), place, name, type, filled, is_donated))
    return tuple(found)


Location = tuple[int, tuple[int, ...]]  # an instruction, and the element of the tuple it makes


def _handed_over(buffers: list[Buffer]) -> Iterator[Buffer]:
    """End what is overwritten in place where the new array begins."""
    starts: dict[int, list[Buffer]] = defaultdict(list)
    for buffer in buffers:
        starts[buffer.spans[0][0]].append(buffer)

    def shortened(one: Buffer, first: int, last: int) -> Span:
        is_taken = any(
            other is not one and other.offset < one.offset + one.bytes
            and one.offset < other.offset + other.bytes
            for other in starts[last]
        )  # fmt: skip
        return first, last - 1 if is_taken and first < last else last

    for one in buffers:
        yield replace(one, spans=tuple(shortened(one, *span) for span in one.spans))


def _location(fields: Fields, schedule: _Schedule) -> Location:
    identity = _number(fields, 4, -1)
    if identity not in schedule.nodes:
        identity = schedule.by_name.get(_text(fields, 2), identity)
    return identity, tuple(_varints(fields.get(3, ())))


def _buffer(
    offset: int, size: int, start: Location, same: list[Location], schedule: _Schedule
) -> Buffer:
    users = schedule.readers(
        place for one in same for place in schedule.spread(one) if place[0] in schedule.nodes
    )
    origin, argument = schedule.origin([i for i, _ in same if i in schedule.nodes])
    readers = tuple(schedule.nodes[user].instruction for user in users)
    return Buffer(
        offset, size, schedule.type_of(*start), schedule.told(origin, readers),
        schedule.spans(start), readers, argument if origin.opcode != "parameter" else "",
    )  # fmt: skip
