# `make demo` and `make test` install what they need. Required: git, make and python3 (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
DEMO_SEED ?= 0

.PHONY: demo test test-proofs check test-torch test-trackers test-exports docs install clean

demo: $(VENV)/.installed
	$(RUN) -m m2det_jax.demo --workdir $(DEMO) --seed $(DEMO_SEED)

# Two test files at a time, because one alone does not use two cores. Each needs several GiB.
test: $(VENV)/.installed-test
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Proofs that commands of benchmarks/ work: faults of a run, roads, equal bits, the GPU command.
test-proofs: $(VENV)/.installed-test
	$(RUN) -m pytest -m proof

# Linter, format and types.
check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The tests with PyTorch, which `make test` skips. They download several GiB.
test-torch: $(VENV)/.installed-torch
	M2DET_REQUIRE_TORCH=1 $(RUN) -m pytest tests/weights tests/test_convert.py

# The tests with W&B, MLflow and trackio, in an environment of their own: MLflow alone brings 80 packages.
test-trackers: $(VENV)-trackers/.installed
	M2DET_REQUIRE_TRACKERS=1 $(VENV)-trackers/bin/python -m pytest tests/test_trackers.py

# The tests of exported detectors, which `make test` leaves out. jax2onnx asks for an older Orbax than this
# package needs, but only its converter is used; so it comes without its dependencies.
test-exports: $(VENV)/.installed-exports
	M2DET_REQUIRE_EXPORTS=1 $(RUN) -m pytest -m exports tests/inference

# The pages of docs/ as a site, build/docs/index.html. A broken link is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --clean

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

# Without constraints.txt: MLflow bounds packages that have other versions there.
$(VENV)-trackers/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,wandb,mlflow,trackio]'
	touch $@

$(VENV)/.installed-exports: $(VENV)/.installed-test
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,onnx]'
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps jax2onnx
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) runs

# The wheel as a newcomer gets it: built, checked, installed elsewhere and used, on $(PYTHON).
.PHONY: wheel resolve-cuda
wheel: $(VENV)/.installed-dev
	$(RUN) tests/wheel/check.py --python $(PYTHON)

# What pip would install for CUDA 12 and 13, without a GPU and without an installation. Not part of CI.
resolve-cuda: $(VENV)/.installed-dev
	$(RUN) tests/wheel/resolve_cuda.py

# The notebook docs/tour.ipynb, executed from a copy in a few steps.
.PHONY: notebook
notebook: $(VENV)/.installed-dev
	$(RUN) tests/notebook/execute.py

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	touch $@
