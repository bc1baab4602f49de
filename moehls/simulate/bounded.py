"""Sources for the C simulation with bounded streams and memories: the processes of a region side by side.

In goes the text of a C++ file of a project; out comes the same text with every call in a region (a function with `DATAFLOW`)
started as a process of its own, every stream that a region declares knowing its name (`templates/hls/shim/hls_fibers.h`), and
every memory its size (`hls_memory.h`).
"""

from __future__ import annotations

import re

_REGION = re.compile(r"^    DATAFLOW\n(?P<body>.*?)^}$", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"^    (?P<process>[a-z]\w*)\([^;{}]*\);$", re.MULTILINE)
_STREAM = re.compile(r"^    \w+ (?P<name>\w+)(?:\[\w+\])?;(?= *(?://.*)?$)", re.MULTILINE)
_MEMORY = re.compile(r"^    static (?P<type>\w+) (?P<name>\w+)\[(?P<sizes>[^;=]+)\];", re.MULTILINE)
_DEPTH = r"\w+_DEPTH|MAX_EXPERTS(?: \* MAX_TOKENS)?|SEGMENTS|2"
_ARGUMENT = re.compile(rf"(?<=[(\s])(?P<type>\w+) (?P<name>\w+)\[(?P<sizes>(?:TOKENS\]\[)?(?:{_DEPTH}))\](?=[,)])")
_ANY_DEPTH = re.compile(r"\bparameter_word_t\* (?=\w+\))")
_TRACE = re.compile(r"^( +TRACE_STEP\(\w+, )([\w, \n]+)\);", re.MULTILINE)
_NAME = re.compile(r"\w+")


def bounded_text(text: str) -> str:
    """The C++ in which the processes of every region run side by side, and memories check what indexes them."""
    return _with_memories(_with_processes(text))


def _with_processes(text: str) -> str:
    return _REGION.sub(lambda found: f"    DATAFLOW\n{_region(found['body'])}    hls::join();\n}}", text)


def _region(body: str) -> str:
    named = _STREAM.sub(lambda found: f'{found[0]} hls::name_stream({found["name"]}, "{found["name"]}");', body)
    return _CALL.sub(lambda found: f'    hls::spawn("{found["process"]}", [&] {{ {found[0].strip()} }});', named)


def _with_memories(text: str) -> str:
    text = _MEMORY.sub(lambda found: f'    static {_memory(found)} {found["name"]}{{"{found["name"]}"}};', text)
    text = _ARGUMENT.sub(lambda found: f"{_memory(found)}& {found['name']}", text)
    text = _ANY_DEPTH.sub("hls::words_of<parameter_word_t> ", text)
    return _TRACE.sub(lambda found: found[1] + _NAME.sub(r"\g<0>.words", found[2]) + ");", text)


def _memory(found: re.Match[str]) -> str:
    return f"hls::memory<{found['type']}, {found['sizes'].replace('][', ', ')}>"
