# make demo   the whole way on the trained model of this repository, from nothing
# make test   every check, from nothing
# The other targets are listed by `make help`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := build/digits
COUNTED := build/digits-counted

.PHONY: help setup demo test lint test-models bench bench-m3vit bench-resources rtl-forms lint-m3vit faults fuzz-onnx fuzz-rtl clean

help:
	@echo "make demo         compile, simulate, verify and report the committed digits model"
	@echo "make test         ruff, mypy, import-linter and pytest"
	@echo "make setup        the virtual environment alone, everything but torch"
	@echo "make test-models  the tests of the exporters (installs torch, timm, transformers)"
	@echo "make bench        the figures of benchmarks/"
	@echo "make bench-resources  a small kernel counted whole by yosys, within 15 % of the plan"
	@echo "make bench-m3vit  M3ViT-tiny in RTL: cycles, resources, utilisation (installs torch; WEIGHTS=file.npz)"
	@echo "make rtl-forms    a frame in RTL of each of 19 forms of models, about 10 minutes"
	@echo "make lint-m3vit   the RTL of M3ViT-tiny's machine: lint, intervals, paths"
	@echo "make faults       100 breaks in generated C++ and 100 in RTL: which of them verification sees"
	@echo "make fuzz-rtl     1000 random C++ programs, native against RTL (COUNT=…, SEED=…)"
	@echo "make fuzz-onnx    10000 changed ONNX files (CASES=…, SEED=…): each is read correctly or refused"
	@echo "make clean        removes build/ and the caches, not the virtual environment"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "moehls needs Python 3.11 or later; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,rtl]'
	@touch $@

demo: $(STAMP)
	$(BIN)/moehls compile models/digits/digits.onnx --calibrate models/digits/calibration.npz -o $(DEMO) --force
	$(BIN)/moehls verify $(DEMO) --levels reference,csim --inputs models/digits/test.npz
	$(BIN)/moehls report $(DEMO)

test: lint
	$(BIN)/pytest --numprocesses auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test-models: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,rtl,models]'
	$(BIN)/pytest tests/models_torch

bench: $(STAMP)
	$(BIN)/python -m benchmarks

bench-resources: $(STAMP)
	$(BIN)/moehls compile models/digits/digits.onnx --calibrate models/digits/calibration.npz -o $(COUNTED) --force \
		--set token_parallel=4 --set block=8 --set epilogue_lanes=2 --set ports=2
	$(BIN)/moehls resources $(COUNTED)
	$(BIN)/python -m benchmarks resources $(COUNTED)

bench-m3vit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,rtl,models]'
	$(BIN)/python -m benchmarks m3vit $(if $(WEIGHTS),--weights $(WEIGHTS))

rtl-forms: $(STAMP)
	$(BIN)/python -m tests.tb.forms

lint-m3vit: $(STAMP)
	$(BIN)/python -m tests.rtl.large

faults: $(STAMP)
	$(BIN)/python -m tests.tb.faults 100

fuzz-rtl: $(STAMP)
	$(BIN)/python -m tests.rtl.fuzz $(or $(SEED),1) $(or $(COUNT),1000)

fuzz-onnx: $(STAMP)
	$(BIN)/python -m tests.frontend.fuzz --cases $(or $(CASES),10000) --seed $(or $(SEED),1)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
