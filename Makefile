# Two commands do everything: `make compare` and `make test`. Each sets up .venv first when it is missing.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
# glibc then asks for large pages: training on a CPU took 8% less time (results/NOTES.md). Other systems ignore it.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

help: ## what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

setup: .venv/ready ## make .venv and install everything, once

.venv/ready: pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "make: there is no $(PYTHON): name a Python, make PYTHON=python3.12 setup"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=python3.12 setup"; exit 2; }
	@echo "Setting up .venv, once; this takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "make: $(PYTHON) could not make .venv, see above (on Debian and Ubuntu: apt install python3-venv)"; exit 2; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { echo "make: .venv has no pip that runs: rm -rf .venv, and the same again"; exit 2; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

compare: .venv/ready ## train sinusoidal, learned, alibi and rope on the embedded text, and report (ARGS="--seeds 0 1 2" adds options)
	$(BIN)/python compare.py $(ARGS)

sweep: .venv/ready ## learning rates and amplitudes: remake results/SWEEPS.md (an hour on two cores)
	$(BIN)/python -m experiments.sweeps $(ARGS)

results: .venv/ready ## lengths, scalings, tuning, bases, retrieval: remake results/RESULTS.md (hours; goes on where it was)
	for name in lengths scalings retrieval bases; do $(BIN)/python -m experiments.$$name $(ARGS) || exit; done

test: .venv/ready ## all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

faults: .venv/ready ## try to break a run: kill, damage, refuse, interrupt; remake results/faults.json and its table (half an hour)
	$(BIN)/python tests/long/faults.py --publish true $(ARGS)

audit: .venv/ready ## known weaknesses of the pinned libraries, by pip-audit in an environment of its own (needs the network)
	test -x .cache/audit/bin/pip-audit || { $(PYTHON) -m venv .cache/audit && .cache/audit/bin/pip install --quiet pip-audit; }
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[^ ]*$$//' > .cache/audit/frozen.txt
	.cache/audit/bin/pip-audit --strict --no-deps --disable-pip -r .cache/audit/frozen.txt

lint: .venv/ready ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove runs' caches and what tools left, not runs/ and not .venv
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help setup compare sweep results test faults audit lint clean
