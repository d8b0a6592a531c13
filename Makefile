# make demo | make test | make check | make bench | make docs
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: torture demo test browser check format bench reproduce docs clean

# one stamp file says that the environment matches what the project asks for
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed ## a comparison of four methods that really train a language model, and its page
	$(BIN)/polyrl demo --overwrite

test: $(VENV)/.installed browser ## every test but the slow reproductions
	$(BIN)/python -m pytest -m "not reproduction"

# the report page is tested in a real browser; where there is none and it cannot be installed, those tests are skipped
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq chromium >/dev/null 2>&1; } \
	|| echo "no Chromium found: the tests that open the report in a browser will be skipped"

torture: $(VENV)/.installed ## two hundred kills at random moments over every method, and no number may change
	$(BIN)/python tests/torture.py --kills 200

check: $(VENV)/.installed ## format, lint, types
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format src tests benchmarks docs
	$(BIN)/ruff check --fix src tests benchmarks docs

bench: $(VENV)/.installed ## ratios to TRL and Stable-Baselines3 on the same work: about an hour on a quiet core
	$(BIN)/python benchmarks/run.py
	$(BIN)/python docs/hooks.py

reproduce: $(VENV)/.installed ## every claim put to the test again: about an hour and a half on two cores
	$(BIN)/polyrl reproduce --all
	$(BIN)/python docs/hooks.py

docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site
