# make demo | make test | make check | make capped | make newest | make oldest | make bench | make docs
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

PIP = python -m pip install --quiet --disable-pip-version-check
# what a user can install, for `newest` and `oldest`; `solvers` wants another protobuf than the oldest tensorboard
EXTRAS = control,lora,data,offline,math,export,figures
# of torch only the version that the tests ran with: other ones bring gigabytes for GPUs on some platforms
TORCH = $(shell grep '^torch==' constraints.txt)

.PHONY: demo test ranks mutants margins torture browser capped newest oldest verdicts check format bench reproduce docs clean

# one stamp file says that the environment matches what the project asks for
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed ## a comparison of four methods that really train a language model, and its page
	$(BIN)/polyrl demo --overwrite

test: $(VENV)/.installed browser ## every test but the slow reproductions
	$(BIN)/python -m pytest -m "not reproduction and not whole_catalogue" --numprocesses 2 --dist loadfile

ranks: $(VENV)/.installed ## every language and preference method in two processes of one run, against one process
	$(BIN)/python -m pytest -m whole_catalogue tests/test_ranks.py

mutants: $(VENV)/.installed ## hundreds of single mutations of the sources: which ones no test notices; half an hour on two cores
	$(BIN)/python tests/mutate.py

margins: $(VENV)/.installed ## learning tests with several seeds and instruction sets, against what they ask for
	$(BIN)/python tests/margins.py

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

# processors without AVX-512 take other kernels, whose results differ by rounding
capped: $(VENV)/.installed ## what depends on the processor, with its instruction sets capped at AVX2
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(BIN)/python -m pytest \
	tests/test_decoder.py tests/test_fast_update.py tests/test_closed_form.py tests/test_learning.py tests/test_pf_ppo.py

plain: $(VENV)/.installed ## a part of the tests with no fast path: they only make things faster
	POLYRL_KERNELS=off $(BIN)/python -m pytest -m "not kernels" \
	tests/test_control_ppo.py tests/test_update.py tests/test_methods.py tests/test_learning.py tests/test_off_policy.py \
	tests/test_sampling.py tests/test_continuations.py

# those that take seconds: a change of the code that moves the numbers of a verdict is seen
verdicts: $(VENV)/.installed ## a seed of each verdict on exact problems again: are the numbers those of the ledger?
	$(BIN)/polyrl reproduce --check --family theory --quiet
	$(BIN)/polyrl reproduce --check nash-mp --quiet

newest: ## a fresh environment with the newest versions that pyproject.toml allows, in which a minute is trained
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/$(PIP) $(TORCH)
	.venv-newest/bin/$(PIP) ".[$(EXTRAS)]"
	.venv-newest/bin/python .ci/trains.py

oldest: ## the same with the oldest versions
	rm -rf .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/$(PIP) $(TORCH)
	.venv-oldest/bin/$(PIP) --constraint constraints-oldest.txt ".[$(EXTRAS)]"
	.venv-oldest/bin/python .ci/trains.py

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
	rm -rf $(VENV) .venv-newest .venv-oldest site
