"""Sources for the C simulation with bounded streams: the processes of a region side by side.

In goes the text of a C++ file of a project; out comes the same text with every call in a region (a function with `DATAFLOW`)
started as a process of its own, and every stream that a region declares knowing its name (`templates/hls/shim/hls_fibers.h`).
"""

from __future__ import annotations

import re

_REGION = re.compile(r"^    DATAFLOW\n(?P<body>.*?)^}$", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"^    (?P<process>[a-z]\w*)\([^;{}]*\);$", re.MULTILINE)
_STREAM = re.compile(r"^    \w+ (?P<name>\w+)(?:\[\w+\])?;(?= *(?://.*)?$)", re.MULTILINE)


def with_processes(text: str) -> str:
    """The C++ in which the processes of every region run side by side."""
    return _REGION.sub(lambda found: f"    DATAFLOW\n{_region(found['body'])}    hls::join();\n}}", text)


def _region(body: str) -> str:
    named = _STREAM.sub(lambda found: f'{found[0]} hls::name_stream({found["name"]}, "{found["name"]}");', body)
    return _CALL.sub(lambda found: f'    hls::spawn("{found["process"]}", [&] {{ {found[0].strip()} }});', named)
