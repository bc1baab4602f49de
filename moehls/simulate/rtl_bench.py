"""cocotb benches: SystemVerilog under Verilator, driven by a Python module of tests.

In go a design, the module with its cocotb tests and what they need to know (passed as JSON in `MOEHLS_BENCH`); out comes
the number of tests that passed, or an error with the first failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moehls.errors import CheckFailed, MoehlsError
from moehls.resources import resource
from moehls.simulate.verilator import Build, build

_VARIABLE = "MOEHLS_BENCH"


@dataclass(frozen=True)
class Bench:
    """A design under test and its tests.

    Attributes:
        top: the top module.
        sources: SystemVerilog files and waivers.
        module: the Python module with the cocotb tests; it must be importable from `paths`.
        parameters: parameters of the top module.
        public: whether the tests look inside the design; else they see the ports of `top` only, and it runs faster.
        paths: folders to import from, besides `tb`.
        data: files that the design reads when it starts, by name in the current folder.
        fast: whether to optimise the simulator: worth its time in long tests only, as Python takes most of a cycle.
    """

    top: str
    sources: tuple[Path, ...]
    module: str
    parameters: tuple[tuple[str, int | str], ...] = ()
    public: bool = False
    paths: tuple[Path, ...] = ()
    data: tuple[Path, ...] = ()
    fast: bool = False


@dataclass(frozen=True)
class BenchResult:
    """A bench that passed.

    Attributes:
        name: of the bench.
        unit: the module under test.
        runs: steps, calls or frames that it has data of.
        tests: cocotb tests that passed, each with some or all of the runs.
        seconds: what it took, the build included.
    """

    name: str
    unit: str
    runs: int
    tests: int
    seconds: float


def run_bench(
    bench: Bench,
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    tests: Sequence[str] = (),
    arguments: Sequence[str] = (),
    seed: int = 0,
    waves: bool = False,
    limit: float = 900.0,
) -> int:
    """Build in `folder` and run; returns how many tests passed.

    Args:
        bench: what to run.
        folder: the build folder; executables are kept there by content.
        settings: what `settings()` gives inside the tests.
        tests: names of tests to run (patterns); all if empty.
        arguments: of the simulator, for `$value$plusargs`.
        seed: of every random choice in the tests.
        waves: leave `dump.fst` in the run's folder.
        limit: seconds after which the simulator is stopped.

    Raises:
        CheckFailed: a test failed; the message has its name and reason.
        MoehlsError: the design does not build, or the simulator died.
    """
    folder = folder.absolute()  # the simulator runs in a folder of its own
    program = build(_job(bench, folder, waves), folder)
    place = program.parent / f"run.{bench.module}"
    place.mkdir(exist_ok=True)
    results = place / "results.xml"
    results.unlink(missing_ok=True)
    for path in bench.data:
        shutil.copyfile(path, place / path.name)
    command = [str(program), *arguments, *(["--trace", "--trace-file", "dump.fst"] if waves else [])]
    environment = _environment(bench, results, tests, seed) | {_VARIABLE: json.dumps(dict(settings or {}))}
    log = place / "log.txt"
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command,
                cwd=place,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"{bench.module}: not done after {limit:.0f} s; see {log}") from error
    if not results.exists():
        raise MoehlsError(f"the simulator left no results (exit code {done.returncode}); see {log}")
    return _passed(results, log)


def settings() -> dict[str, Any]:
    """Inside a cocotb test: what `run_bench` was given."""
    found = json.loads(os.environ.get(_VARIABLE, "{}"))
    assert isinstance(found, dict)
    return found


def _job(bench: Bench, folder: Path, waves: bool) -> Build:
    import cocotb_tools.config as cocotb

    libraries = Path(cocotb.libs_dir)
    main = Path(cocotb.share_dir) / "lib" / "verilator" / "verilator.cpp"
    parameters = [f"-G{name}={_literal(value)}" for name, value in bench.parameters]
    access = ["--public-flat-rw"] if bench.public else []
    sources = bench.sources
    if not bench.public:
        folder.mkdir(parents=True, exist_ok=True)
        visible = folder / f"{bench.top}.ports.vlt"
        visible.write_text(f'`verilator_config\npublic_flat_rw -module "{bench.top}" -port "*"\n')
        sources = (visible, *sources)
    return Build(
        top=bench.top,
        prefix="Vtop",
        sources=sources,
        programs=(main,),
        arguments=("--vpi", *access, *parameters),
        libraries=(f"-Wl,-rpath,{libraries}", f"-L{libraries}", "-lcocotbvpi_verilator"),
        waves=waves,
        fast=bench.fast,
    )


def _literal(value: int | str) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _environment(bench: Bench, results: Path, tests: Sequence[str], seed: int) -> dict[str, str]:
    import cocotb_tools.config as cocotb
    import find_libpython

    library = find_libpython.find_libpython()
    if library is None:
        raise MoehlsError("cocotb needs the shared library of Python (libpython); install a Python that has one")
    paths = [*map(str, bench.paths), str(resource("tb")), *sys.path]
    environment = dict(os.environ) | {
        "PATH": os.pathsep.join([os.environ.get("PATH", ""), str(cocotb.libs_dir)]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYGPI_PYTHON_BIN": sys.executable,
        "GPI_USERS": f"{library};{cocotb.pygpi_entry_point()}",
        "COCOTB_TOPLEVEL": bench.top,
        "COCOTB_TEST_MODULES": bench.module,
        "TOPLEVEL_LANG": "verilog",
        "COCOTB_RESULTS_FILE": str(results),
        "COCOTB_RANDOM_SEED": str(seed),
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "COCOTB_LOG_LEVEL": "WARNING",
    }
    environment.pop("PYTEST_CURRENT_TEST", None)
    if tests:
        environment["COCOTB_TEST_FILTER"] = rf"\.({'|'.join(tests)})$"
    return environment


def _passed(results: Path, log: Path) -> int:
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    for case in cases:
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            reason = problem.get("message") or problem.get("error_msg") or (problem.text or "no reason").strip()
            raise CheckFailed(f"{case.get('name')}: {reason}; see {log}")
    passed = sum(case.find("skipped") is None for case in cases)
    if not passed:
        raise MoehlsError(f"no test ran; see {log}")
    return passed
