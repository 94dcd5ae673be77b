# Needs Python 3.10 or newer and nothing else; everything it makes is in .venv (and .data).
# Another Python than `python3`:  make run PYTHON=python3.12
# Settings can be given as well:  make run PORT=9000

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help run test test-fast fuzz check lint types format docs prove clean \
    bench bench-check bench-growth bench-cost
.DELETE_ON_ERROR:

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.installed ## Start the service, with a database of its own
	@exec $(RUN) main.py

test: $(VENV)/.installed-dev ## All tests; some of them:  make test ARGS="-k orders"
	@exec $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

FAST := tests/domain tests/auth tests/observability tests/workers tests/test_layers.py \
    --ignore tests/auth/test_wycheproof.py
test-fast: $(VENV)/.installed-dev ## Tests that need no database, in seconds; they cover domain/ completely
	@exec $(RUN) -m pytest -n 2 --dist loadfile -m 'not database' $(FAST) $(ARGS)

fuzz: $(VENV)/.installed-dev ## Requests made from the OpenAPI document, with many seeds:  make fuzz SEEDS=100
	@FUZZ_SEEDS=$(or $(SEEDS),20) exec $(RUN) -m pytest tests/web/test_fuzz.py $(ARGS)

prove: $(VENV)/.installed ## Kill the service at every step of a payment, compare the books
	@exec $(RUN) cli.py prove $(ARGS)

check: lint types test ## All that CI checks: format, lint, types, tests

lint: $(VENV)/.installed-dev ## Format and lint, without changing anything
	@$(RUN) -m ruff format --check --quiet . || { echo 'Run `make format`.'; exit 1; }
	@$(RUN) -m ruff check --quiet .

types: $(VENV)/.installed-dev ## Types, strictly
	@$(RUN) -m mypy --no-error-summary .

format: $(VENV)/.installed-dev ## Format, and mend what can be mended by machine
	@$(RUN) -m ruff check --fix --quiet . ; $(RUN) -m ruff format .

docs: $(VENV)/.installed ## Write the parts of the docs that are made from the code
	@$(RUN) -m docs.generate

bench: $(VENV)/.installed ## Measure every operation beside a naive service:  make bench ARGS=--quick
	@exec $(RUN) -m benchmarks.bench $(ARGS)

bench-check: $(VENV)/.installed ## Name what became slower than in the kept results; 2 minutes
	@exec $(RUN) -m benchmarks.check

bench-growth: $(VENV)/.installed ## Measure with up to three million orders; ARGS="--orders 10000,1000000"
	@exec $(RUN) -m benchmarks.growth_by_size $(ARGS)

bench-cost: $(VENV)/.installed ## Measure what an order costs in statements and bytes
	@exec $(RUN) -m benchmarks.cost --variants $(ARGS)

clean: ## Remove .venv and caches; .data (the database and the secrets) stays
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.data/*' -prune -exec rm -rf {} +

# Stamps: nothing is installed again until the requirements change.
$(VENV)/.installed: requirements.txt | $(VENV)/.made
	@echo 'Installing dependencies (once, about 20 s) ...'
	@$(RUN) -m pip install -qq --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	@echo 'Installing the tools for development (once, about 20 s) ...'
	@$(RUN) -m pip install -qq --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	    echo '$(PYTHON) is not installed. Install Python 3.10 or newer, or name one that is:'; \
	    echo '    make $(MAKECMDGOALS) PYTHON=/path/to/python'; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "This needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1). Name another one:"; \
	    echo '    make $(MAKECMDGOALS) PYTHON=/path/to/python'; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) comes without its venv module. On Debian and Ubuntu:"; \
	    echo '    apt install python3-venv'; exit 1; } >&2
	@echo "Making $(VENV) with $$($(PYTHON) -V) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@
