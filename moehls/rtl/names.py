"""SystemVerilog names from LLVM's, which come from the source's."""

from __future__ import annotations

import re
from collections.abc import Mapping

# of SystemVerilog, and names of our own modules' ports
_KEYWORDS = frozenset(
    "alias always and assert assign assume automatic before begin bind bins binsof bit break buf byte case cell chandle checker "
    "class clocking config const constraint context continue cover cross deassign default define design disable dist do edge "
    "else end endcase enum event expect export extends extern final first_match for force foreach forever fork forkjoin function "
    "generate genvar global if iff ifnone implements import incdir include initial inout input inside instance int integer "
    "interface intersect join large let liblist library local localparam logic longint macromodule matches medium modport "
    "module nand negedge new nexttime nor not null or output package packed parameter posedge primitive priority program "
    "property protected pull0 pull1 pure rand randc randcase real ref reg reject_on release repeat restrict return scalared "
    "sequence shortint signed small soft solve specify static string strong struct super supply0 supply1 table tagged task this "
    "throughout time timeprecision timeunit tri type typedef union unique unsigned until untyped use uwire var vectored virtual "
    "void wait wait_order wand weak while wildcard wire with within wor xnor xor clock reset start done".split()
)

_TRAVELLING = re.compile(r"_s\d+$")
"""ends the name of a value in a later stage"""


class Names:
    """SystemVerilog names from LLVM's, which come from the source's; `hints` are better ones, by LLVM name."""

    def __init__(self, hints: Mapping[str, str] | None = None) -> None:
        self._given: dict[str, str] = {}
        self._used: set[str] = set()
        self._hints = hints or {}

    def of(self, name: str) -> str:
        if name not in self._given:
            text = self._hints.get(name) or name.strip('%@"')
            if (found := re.match(r"_ZZ.*E(\d+)([A-Za-z_]\w*)$", text)) or (
                found := re.match(r"_ZL?(\d+)(\w+)$", text)
            ):
                text = found[2][: int(found[1])]
            text = spelling(
                re.sub(r"\.(?:i|sroa|\d+|val|lcssa|ph|pre|addr|copyload|not)\b", "", text.replace("-", "_"))
            )
            text = f"{text}_" if _TRAVELLING.search(text) else text
            fresh, n = text, 1
            while fresh in self._used:
                n += 1
                fresh = f"{text}_{n}"
            self._used.add(fresh)
            self._given[name] = fresh
        return self._given[name]


def spelling(text: str) -> str:
    """A text as an identifier of SystemVerilog."""
    text = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_") or "value"
    return f"v{text}" if text[0].isdigit() else f"{text}_" if text in _KEYWORDS else text
