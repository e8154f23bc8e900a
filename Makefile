# The first `make demo` installs requirements.lock and requirements-torch.lock in a virtual environment,
# `make test`, `make check` and others requirements-dev.lock too. Every file must have the SHA-256 that
# is listed there, and nothing that is not listed is installed. The one exception is TORCH_INDEX, the
# address of a package index with CPU builds of torch, for a smaller set-up: torch and torchvision come
# from there in the versions of requirements-torch.lock, and pip does not check their hashes.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)])' 2>/dev/null \
	&& { echo $$p; break; }; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
INSTALL := PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
HASHED := --require-hashes --no-deps
SHOW_LARGE := | { grep --line-buffered -E 'Downloading .* \(([0-9]{2}.*M|.*G)B\)' || true; }
ifdef TORCH_INDEX
TORCH = --no-deps --extra-index-url $(TORCH_INDEX) $$(grep -oE '^torch(vision)?==[^ ]+' requirements-torch.lock)
else
TORCH = $(HASHED) --requirement requirements-torch.lock
endif
export RAY_USAGE_STATS_ENABLED := 0
ifneq ($(wildcard ../shared/data/README.md),)
export VISION_DATA ?= $(abspath ../shared/data)
endif

.PHONY: setup demo test slow gpu gpu-stand-in check lint types imports bench clean

setup: $(DEV)

$(READY): requirements.lock requirements-torch.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing requirements.lock in $(VENV). The usual torch for Linux includes CUDA: several GB" \
		"are downloaded; with TORCH_INDEX=ADDRESS of an index with CPU builds, a few hundred MB." \
		"The files above 10 MB:"
	@$(INSTALL) $(HASHED) --requirement requirements.lock $(SHOW_LARGE)
	@$(INSTALL) $(TORCH) $(SHOW_LARGE)
	@touch $@

$(DEV): $(READY) requirements-dev.lock
	@echo "Installing requirements-dev.lock, which tests and checks need"
	@$(INSTALL) $(HASHED) --requirement requirements-dev.lock $(SHOW_LARGE)
	@touch $@

demo: $(READY)
	$(BIN)/python -m jobs.train --config digits.yaml --out runs/demo/digits --workers 2
	$(BIN)/python -m jobs.tune --config digits_sweep.yaml --out runs/demo/sweep --trials 4
	$(BIN)/python -m jobs.click --image flower --points 310 220 --out runs/demo/click.png
	$(BIN)/python -m docs.demo --out runs/demo/clips
	$(BIN)/python -m jobs.mask --manifest docs/demo.csv --root runs/demo/clips --out runs/demo/masks \
		--workers 2 --export overlay --score runs/demo/clips/truth
	$(BIN)/python -m docs.strip --run runs/demo/masks --out runs/demo/strip.png
	$(BIN)/python -m jobs.mask --manifest docs/kinds.csv --root runs/demo/clips --out runs/demo/both \
		--workers 2 --export crops --crops.every 1 --crops.val-share 0.5 --crops.test-share 0
	$(BIN)/python -m jobs.train --config crops.yaml --data runs/demo/both/export/crops --out runs/demo/kinds \
		--epochs 10 --batch-size 16
	$(BIN)/python -m jobs.predict --weights runs/demo/kinds --data runs/demo/both --out runs/demo/names
	@echo "the clips' clicks in a browser: $(BIN)/python -m jobs.prompt docs/demo.csv" \
		"--root runs/demo/clips --out runs/demo/clicks.csv"

test: $(DEV)
	$(BIN)/python -m pytest -m "not slow and not gpu and not ray" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "not slow and not gpu and ray" tests/jobs/test_*.py

slow: $(DEV)
	$(BIN)/python -m pytest -m slow

gpu: $(DEV)
	$(BIN)/python -m pytest -m gpu -p tests.fail_if_all_skipped

gpu-stand-in: $(DEV)
	$(BIN)/python -m pytest -m gpu -p tests.stand_in_cuda -p tests.fail_if_all_skipped

check: lint types imports

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

imports: $(DEV)
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(DEV)
	$(BIN)/python -m benchmarks.training.augment
	$(BIN)/python -m benchmarks.training.train
	$(BIN)/python -m benchmarks.masking.sam
	$(BIN)/python -m benchmarks.masking.mini
	$(BIN)/python -m benchmarks.masks.prompt

clean:
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
