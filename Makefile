# `make demo` and `make test` each do their own set-up on a machine with git, python3 (>= 3.11) and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
DEMO_SEED ?= 0

.PHONY: demo test check test-torch install clean

demo: $(VENV)/.installed
	$(RUN) -m m2det_jax.demo --workdir $(DEMO) --seed $(DEMO_SEED)

# Two files of tests at a time: compiling and waiting leave a core idle. Several GiB each.
test: $(VENV)/.installed-test
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What needs no test: the rules of ruff, the form of the code, and the types.
check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The tests that read and write PyTorch's files, which `make test` skips: several GiB to download.
test-torch: $(VENV)/.installed-torch
	M2DET_REQUIRE_TORCH=1 $(RUN) -m pytest tests/weights tests/test_convert.py

install: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "python3 is %d.%d; m2det_jax needs 3.11 or newer: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-torch: $(VENV)/.installed-test
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,torch]' torchvision
	touch $@

clean:
	rm -rf $(VENV) runs
