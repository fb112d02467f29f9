# `make demo` and `make test` set up everything they need; a second call starts at once.
# Needs Python 3.11 or newer and make; uses uv where it is on the PATH, plain pip otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := .[dlib,adam8bit,heif,aws,gcp,s3,dev]

.DEFAULT_GOAL := help
.PHONY: help demo test test-of-sweeps test-of-the-rest check format lock clean

help:
	@echo "make demo    run the embedded sweep (no GPU, no download); writes runs/demo"
	@echo "make test    run the tests"
	@echo "make check   what CI runs: format, lint, types, import rules, tests"
	@echo "make format  mend format and imports"
	@echo "make lock    write constraints.txt anew from what is installed"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dreamsweep needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@if command -v uv >/dev/null 2>&1; then \
		echo "setting up $(VENV) with uv"; \
		[ -x $(BIN)/python ] || uv venv --quiet --python $(PYTHON) $(VENV); \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '$(EXTRAS)'; \
	else \
		echo "setting up $(VENV) with pip (some minutes, some 6 GB with torch)"; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '$(EXTRAS)'; \
	fi
	@touch $(READY)

demo: $(READY)
	$(BIN)/dreamsweep demo

# Two calls side by side, about as long: what starts Ray waits more than it computes.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs 2 test-of-sweeps test-of-the-rest

test-of-sweeps: $(READY)
	$(BIN)/python -m pytest tests/sweeps

test-of-the-rest: $(READY)
	$(BIN)/python -m pytest --ignore tests/sweeps

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(READY)
	@{ head -n 1 constraints.txt; $(BIN)/python -m pip list --format=freeze --exclude-editable 2>/dev/null || uv pip freeze --python $(BIN)/python --exclude-editable; } \
		| grep -v -E '^(pip|setuptools|wheel)==' > constraints.new && mv constraints.new constraints.txt

clean:
	rm -rf $(VENV)
