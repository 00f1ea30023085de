# One command a job, the same on a laptop and in CI. `make help` lists them.

PYTHON ?=
ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run run-all docs evidence test test-numbers check lab app bench clean

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name what; \
		do printf '  make %-12s %s\n' "$$name" "$$what"; done
	@echo '  ARGS="..." passes options on, as in: make run ARGS="03 -p seed 7"'
	@echo '  PYTHON=... names the Python to install with, 3.11 to 3.13'

run: $(STAMP) ## execute the blog's notebooks, 01 to 09, and build the site: results/index.html
run-all: $(STAMP) ## the same with those beyond the blog, 10 and on
run-all: ALL := --all

# The site is built whatever became of the notebooks, but not where nothing was run.
run run-all:
	$(RUN) -m pdutils run $(ALL) $(ARGS); status=$$?; \
		[ $$status -eq 2 ] || $(RUN) -m tools.site $(ARGS) || exit; exit $$status

docs: $(STAMP) ## build the site from what was executed before
	$(RUN) -m tools.site $(ARGS)

# A process each for two cores: threads of OpenBLAS that wait for one another would spin.
test test-numbers: export OPENBLAS_NUM_THREADS ?= 1

test: check ## check and test everything that needs no network
	$(RUN) -m pytest --numprocesses 2 $(ARGS)

test-numbers: $(STAMP) ## test what computes numbers, as processors without AVX-512 do it
	ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell \
		$(RUN) -m pytest --numprocesses 2 -m "numbers and not slow" $(ARGS)

check: $(STAMP) ## style and types
	$(RUN) -m ruff check --no-cache # which modules are ours hangs on folders that its cache does not see
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

lab: $(STAMP) ## open JupyterLab on the notebooks and their table
	JUPYTER_CONFIG_PATH=tools $(RUN) -m jupyterlab --notebook-dir=. \
		--LabApp.default_url=/lab/tree/notebooks/README.md $(ARGS)

app: $(STAMP) ## serve the explorer as a page on localhost (ARGS="--host 0.0.0.0": to the network)
	$(RUN) -m pdutils app $(ARGS)

evidence: $(STAMP) ## write the pages of results from records/ (ARGS: a network more, see docs/results.md)
	$(RUN) -m tools.evidence $(ARGS)

bench: $(STAMP) ## measure what the defence costs; results/bench.json (ARGS=--quick)
	$(RUN) -m benchmarks $(ARGS)

clean: ## remove results and caches
	rm -rf build results .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(STAMP): requirements.txt pyproject.toml
	@.ci/environment $(VENV) $(PYTHON)
	$(RUN) -m pip install --disable-pip-version-check --requirement requirements.txt
	@touch $@
