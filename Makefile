# The first `make` of any target installs requirements.lock in a virtual environment.
# TORCH_INDEX: address of a package index with CPU builds of torch, for a smaller set-up.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null \
	&& { echo $$p; break; }; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export RAY_USAGE_STATS_ENABLED := 0
ifneq ($(wildcard ../shared/data/README.md),)
export VISION_DATA ?= $(abspath ../shared/data)
endif

.PHONY: setup demo test slow gpu check lint types imports bench clean

setup: $(READY)

$(READY): requirements.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.lock in $(VENV). The usual torch for Linux includes CUDA: several GB" \
		"are downloaded; with TORCH_INDEX=ADDRESS of an index with CPU builds, a few hundred MB." \
		"The files above 10 MB:"
	@PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --requirement requirements.lock \
		| { grep --line-buffered -E 'Downloading .* \(([0-9]{2}.*M|.*G)B\)' || true; }
	@touch $@

demo: $(READY)
	$(BIN)/python -m jobs.train --config digits.yaml --out runs/demo/digits --workers 2
	$(BIN)/python -m jobs.tune --config digits_sweep.yaml --out runs/demo/sweep --trials 4
	$(BIN)/python -m jobs.click --image flower --points 310 220 --out runs/demo/click.png
	$(BIN)/python -m docs.demo --out runs/demo/clips
	$(BIN)/python -m jobs.mask --manifest docs/demo.csv --root runs/demo/clips --out runs/demo/masks \
		--workers 2 --export overlay --score runs/demo/clips/truth
	$(BIN)/python -m docs.strip --run runs/demo/masks --out runs/demo/strip.png
	@echo "the clips' clicks in a browser: $(BIN)/python -m jobs.prompt docs/demo.csv" \
		"--root runs/demo/clips --out runs/demo/clicks.csv"

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu and not ray" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "not slow and not gpu and ray" tests/jobs/test_*.py

slow: $(READY)
	$(BIN)/python -m pytest -m slow

gpu: $(READY)
	$(BIN)/python -m pytest -m gpu -p tests.fail_if_all_skipped

check: lint types imports

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(READY)
	$(BIN)/python -m benchmarks.training.augment
	$(BIN)/python -m benchmarks.training.train
	$(BIN)/python -m benchmarks.masking.sam
	$(BIN)/python -m benchmarks.masking.mini
	$(BIN)/python -m benchmarks.masks.prompt

clean:
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
