"""LLVM's textual form: text in, functions of basic blocks out.

llvmlite's own objects print an instruction by numbering its whole function again, which is quadratic; this reads the module's
text once.
"""

from __future__ import annotations

import re

from moehls.errors import MoehlsError
from moehls.rtl.llvm import (
    Block,
    Constant,
    Function,
    GepConstant,
    Global,
    Instruction,
    Module,
    Name,
    Operand,
    Types,
    Variable,
    split,
)

_NAME = r'[%@](?:"[^"]*"|[\w.$-]+)'
_FLAGS = re.compile(
    r"\b(?:nuw|nsw|exact|disjoint|nneg|inbounds|samesign|noundef|nonnull|signext|zeroext|writable|dead_on_unwind|dead_on_return|nocapture|"
    r"readonly|writeonly|noalias|returned|immarg|nofree|tail|musttail|notail|fastcc|dso_local|local_unnamed_addr|unnamed_addr|"
    r"align \d+|dereferenceable(?:_or_null)?\(\d+\)|captures\([^)]*\)|initializes\(\([^)]*\)\)|range\([^)]*\)|"
    r"nofpclass\([^)]*\)|memory\([^)]*\))\s*"
)
_VARIABLE = re.compile(rf" *#dbg_value\(i\d+ ({_NAME}|-?\d+), !(\d+), !DIExpression\(([^)]*)\), !(\d+)\)")
_METADATA = re.compile(r", !(\w+(?:\.\w+)*) !(\d+)")


def parse(text: str) -> Module:
    """Read a module."""
    structs: dict[str, str] = {}
    module = Module(Types(structs), {}, {}, {})
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("%"):
            name, _, body = line.partition(" = type ")
            structs[name] = body
        elif line.startswith("@"):
            _global(module, line)
        elif line.startswith("define "):
            _function(module, line, lines)
        elif line.startswith("!") and line[1:2].isdigit():
            number, _, body = line.partition(" = ")
            module.metadata[int(number[1:])] = body
    return module


def _global(module: Module, line: str) -> None:
    found = re.match(rf"({_NAME}) = (.*?)\b(constant|global) (.*)$", line)
    if not found:
        return
    type_, rest = _take_type(re.split(r", align \d+", found[4])[0])
    module.globals[found[1]] = Global(found[1], type_, found[3] == "constant", rest.strip())


def _function(module: Module, head: str, lines: object) -> None:
    found = re.match(rf"define .*?({_NAME})\(", head)
    assert found
    inside = head[found.end() : _closing(head, found.end() - 1)]
    parameters = []
    for part in split(inside):
        clean = _FLAGS.sub("", part).strip()
        type_, rest = _take_type(clean)
        parameters.append((type_ if "byval" not in rest else "byval", rest.split()[-1] if rest.split() else ""))
    subprogram = re.search(r"!dbg !(\d+)", head)
    function = Function(found[1], parameters, [], int(subprogram[1]) if subprogram else 0)
    block = Block("%entry")
    for line in lines:  # type: ignore[attr-defined]
        if line == "}":
            break
        if found := _VARIABLE.match(line):
            function.variables.append(Variable(found[1], int(found[2]), found[3], int(found[4])))
            continue
        if not line or line.lstrip().startswith((";", "#dbg")):
            continue
        if not line.startswith(" "):
            label = line.split(":")[0]
            block = Block("%" + label)
            function.blocks.append(block)
            continue
        if not function.blocks:
            function.blocks.append(block)
        if " switch " in line and line.rstrip().endswith("["):
            for more in lines:  # type: ignore[attr-defined]
                line += " " + more.strip()
                if more.strip().startswith("]"):
                    break
        block.instructions.append(_instruction(line.strip()))
    module.functions[function.name] = function


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    raise MoehlsError(f"unbalanced brackets: {text}")


def _take_type(text: str) -> tuple[str, str]:
    """A type at the start of `text`, and the rest."""
    text = text.lstrip()
    if text[0] in "[{<":
        end = _closing(text, 0) + 1
        return text[:end], text[end:]
    found = re.match(rf"(?:{_NAME}|[\w.]+)", text)
    assert found, text
    return found[0], text[found.end() :]


def operand(text: str) -> Operand:
    """One operand without its type."""
    text = text.strip()
    if text[0] in "%@":
        return Name(text)
    if text in ("undef", "poison"):
        return Constant(0, undefined=True)
    if text in ("zeroinitializer", "null", "false"):
        return Constant(0)
    if text == "true":
        return Constant(1)
    if re.fullmatch(r"-?\d+", text):
        return Constant(int(text))
    if found := re.match(rf"getelementptr (?:\w+ )*\(i8, ptr ({_NAME}), i64 (-?\d+)\)", _FLAGS.sub("", text)):
        return GepConstant(Name(found[1]), int(found[2]))
    raise MoehlsError(f"operand '{text}' is outside the subset of C++ that becomes hardware")


def _instruction(line: str) -> Instruction:
    metadata = dict(_METADATA.findall(line))
    line = _METADATA.sub("", line)
    name = ""
    if found := re.match(rf"({_NAME}) = ", line):
        name, line = found[1], line[found.end() :]
    place = int(metadata.get("dbg", 0))
    op = line.split()[0]
    if op in ("tail", "musttail", "notail"):
        op = "call"
    reader = _READERS.get(op, _plain)
    instruction = reader(op, line)
    instruction.name, instruction.line = name, place
    return instruction


def _plain(op: str, line: str) -> Instruction:
    """`op flags type a, b`"""
    type_, rest = _take_type(_FLAGS.sub("", line[len(op) :].lstrip()))
    return Instruction(op, type_, [operand(p) for p in split(rest)])


def _icmp(op: str, line: str) -> Instruction:
    predicate, rest = _FLAGS.sub("", line[len(op) :].lstrip()).split(" ", 1)
    type_, rest = _take_type(rest)
    return Instruction(op, "i1", [operand(p) for p in split(rest)], predicate=predicate, element=type_)


def _cast(op: str, line: str) -> Instruction:
    body, to = _FLAGS.sub("", line[len(op) :].lstrip()).rsplit(" to ", 1)
    type_, rest = _take_type(body)
    return Instruction(op, to.strip(), [operand(rest)], element=type_)


def _select(op: str, line: str) -> Instruction:
    parts = [_take_type(p) for p in split(line[len(op) :])]
    return Instruction(op, parts[1][0], [operand(p[1]) for p in parts])


def _phi(op: str, line: str) -> Instruction:
    type_, rest = _take_type(line[len(op) :])
    pairs = [split(p.strip()[1:-1]) for p in split(rest)]
    return Instruction(op, type_, [operand(a) for a, _ in pairs], labels=[b for _, b in pairs])


def _load(op: str, line: str) -> Instruction:
    rest = line[len(op) :].lstrip()
    volatile = rest.startswith("volatile ")
    type_, pointer, *_ = split(rest.removeprefix("volatile "))
    return Instruction(op, type_, [operand(_take_type(pointer)[1])], volatile=volatile)


def _store(op: str, line: str) -> Instruction:
    rest = line[len(op) :].lstrip()
    volatile = rest.startswith("volatile ")
    value, pointer, *_ = split(rest.removeprefix("volatile "))
    type_, value = _take_type(value)
    return Instruction(op, type_, [operand(value), operand(_take_type(pointer)[1])], volatile=volatile)


def _gep(op: str, line: str) -> Instruction:
    element, *parts = split(_FLAGS.sub("", line[len(op) :].lstrip()))
    return Instruction(op, "ptr", [operand(_take_type(p)[1]) for p in parts], element=element)


def _alloca(op: str, line: str) -> Instruction:
    return Instruction(op, "ptr", [], element=split(line[len(op) :])[0])


def _branch(op: str, line: str) -> Instruction:
    parts = split(line[len(op) :])
    if len(parts) == 1:
        return Instruction(op, "", [], labels=[parts[0].split()[1]])
    return Instruction(op, "i1", [operand(_take_type(parts[0])[1])], labels=[p.split()[1] for p in parts[1:]])


def _switch(op: str, line: str) -> Instruction:
    head, cases = line[len(op) :].split("[", 1)
    value, default = split(head)
    type_, value = _take_type(value)
    found = re.findall(rf"i\d+ (-?\d+|true|false), label ({_NAME})", cases)
    return Instruction(
        op,
        type_,
        [operand(value), *(operand(c) for c, _ in found)],
        labels=[default.split()[1], *(b for _, b in found)],
    )


def _call(op: str, line: str) -> Instruction:
    line = line[line.index("call ") + 5 :]
    found = re.search(rf"({_NAME})\(", line)
    if not found:
        raise MoehlsError(f"an indirect call is outside the subset: {line}")
    type_ = _take_type(_FLAGS.sub("", line[: found.start()]))[0] if line[: found.start()].strip() else "void"
    inside = line[found.end() : _closing(line, found.end() - 1)]
    operands, types = [], []
    for part in split(inside):
        if part.startswith("metadata"):
            continue
        t, rest = _take_type(_FLAGS.sub("", part))
        rest = re.sub(r"byval\([^)]*\)|sret\([^)]*\)", "", rest)
        operands.append(operand(rest))
        types.append(t)
    return Instruction(op, type_, operands, callee=found[1], types=types)


def _ret(op: str, line: str) -> Instruction:
    return Instruction(op, "", [])


_READERS = {
    "icmp": _icmp,
    "trunc": _cast,
    "zext": _cast,
    "sext": _cast,
    "select": _select,
    "phi": _phi,
    "load": _load,
    "store": _store,
    "getelementptr": _gep,
    "alloca": _alloca,
    "br": _branch,
    "switch": _switch,
    "call": _call,
    "ret": _ret,
    "unreachable": _ret,
}
