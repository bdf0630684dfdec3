# Every target builds what it needs: `make demo` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

# The machine's cores are shared out between test processes, so each uses one thread.
TEST_JOBS ?= 2
TEST_ENV := OMP_NUM_THREADS=1

# The attacks of other libraries, for benchmarks alone: their pins must not touch ours.
PEERS := .venv-peers
PEERS_PIP = $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint bench studies peers clean

demo: $(VENV)/.base
	$(BIN)/rmax demo

test: $(VENV)/.test
	$(TEST_ENV) $(BIN)/python -m pytest -n $(TEST_JOBS) $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.test
	mkdir -p out
	$(BIN)/python benchmarks/calibration.py --out out/calibration.json
	$(BIN)/python benchmarks/tightness.py --out out/tightness.json

# A quarter of an hour on two cores; with DATA_DIR=D, the folder of the MNIST files, what fits of MNIST too.
studies: $(VENV)/.base
	$(BIN)/python benchmarks/studies/everything.py $(if $(DATA_DIR),--data-dir $(DATA_DIR))

peers: $(PEERS)/.installed

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info

# A stamp file a set of extras; each depends on the files that name the versions.
$(VENV)/.base: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $@

$(PEERS)/.installed: benchmarks/peers/requirements.txt benchmarks/peers/libraries.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS_PIP) "$$(grep '^torch==' benchmarks/peers/requirements.txt)"
	$(PEERS_PIP) -r benchmarks/peers/requirements.txt
	$(PEERS_PIP) --no-deps -r benchmarks/peers/libraries.txt
	touch $@
