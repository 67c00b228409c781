# Everything a newcomer needs: `make app`, then open the address that it prints. Needs Python 3.11 or newer and make; the rest is
# installed into .venv here. Without make (Windows): README, "Without make".
#
#   make app ARGS="--port 8000"     make test ARGS="-k store"     make bench ARGS="speed"

ARGS ?=
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
# Two test processes on two cores, each with one torch thread (tests/conftest.py); a file's tests stay together and share its fixtures.
WORKERS ?= auto
PYTEST := $(RUN) -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# An environment whose Python has gone (an upgraded system, a copied folder) is built again.
$(shell $(RUN) -c "" 2>/dev/null || rm -f $(VENV)/installed $(VENV)/installed-dev)

.DEFAULT_GOAL := help
.PHONY: help app test test-all lint format bench screenshots setup setup-dev clean

help:
	@echo "make app       start LoopHIL and print its address   (make app ARGS=\"--port 8000\")"
	@echo "make test      the tests, 10 minutes at most          make test-all   the slow ones too"
	@echo "make lint      style and types                        make format     put the style right"
	@echo "make bench     measure, see README                    make screenshots   every tab, into bench/out; the README's too"
	@echo "make clean     remove .venv and caches"

app: setup
	@$(RUN) app.py $(ARGS)

test: setup-dev
	$(PYTEST) $(ARGS)

test-all: setup-dev
	$(PYTEST) -m "" $(ARGS)

lint: setup-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

format: setup-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: setup-dev
	@$(RUN) -m bench $(ARGS)

screenshots: setup-dev
	@$(RUN) -m bench screenshots --docs $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(VENV)/installed
setup-dev: $(VENV)/installed-dev

# Stamps: while they are newer than the lists of requirements there is nothing to do.
$(VENV)/installed: requirements.txt
	@$(find_python); \
	if ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	  echo "Creating $(VENV) with $$($$python --version) and installing requirements.txt (about 3 minutes and 6 GB the first time) ..."; \
	  $$python -m venv --clear $(VENV) || exit 1; \
	else echo "requirements.txt is newer than $(VENV): updating ..."; fi
	@$(RUN) -m pip install --disable-pip-version-check --requirement requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo "Installing what tests and lint need (requirements-dev.txt) ..."
	@$(RUN) -m pip install --disable-pip-version-check --quiet --requirement requirements-dev.txt
	@touch $@

# Sets $$python to the first Python that is new enough, or says in one sentence what is missing.
define find_python
python=; for candidate in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
  if $$candidate -c "import sys; sys.exit(sys.version_info < (3, 11))" >/dev/null 2>&1; then python=$$candidate; break; fi; done; \
if [ -z "$$python" ]; then \
  echo "LoopHIL needs Python 3.11 or newer, and this machine has $$(python3 --version 2>/dev/null || echo none): install one, or say make app PYTHON=/path/to/python3.12"; \
  exit 1; fi
endef
