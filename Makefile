# Linux only. `make demo` and `make test` need Python >= 3.11 with venv, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests wait for processes a fifth of their time
TEST_JOBS ?= $(shell expr $$(nproc) + 1)

.PHONY: demo test test-fast test-openvino check docs bench torture wheel deb clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-packager
	$(BIN)/packager demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder

# no daemons, no quantized models: while editing
test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not process and not slow"

# an environment with OpenVINO in place of the ordinary onnxruntime: both wheels have the same folder
.venv-openvino/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-openvino
	.venv-openvino/bin/python -m pip install --quiet -e ".[dev]"
	.venv-openvino/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-openvino/bin/python -m pip install --quiet "onnxruntime-openvino>=1.24"
	touch $@

test-openvino: .venv-openvino/.installed
	.venv-openvino/bin/python -m pytest -n 0 tests/runtime/test_providers.py tests/agent/test_provider_release.py

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python -m tools.generate_docs

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

torture: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --all-cases -m enumeration
	$(BIN)/python -m torture --write-docs
	$(BIN)/python -m torture.fuzz --only patch --runs 200000

# a wheel of this tree in dist/, with its SHA-256
wheel: $(VENV)/.created
	rm -rf dist/*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	cd dist && sha256sum airweights-*.whl | tee SHA256SUMS

# a Debian package of the device agent in dist/, for this machine's Debian and architecture
deb: wheel
	PIP_PYTHON=$(abspath $(BIN)/python) packaging/debian/build dist/airweights-*.whl dist

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python >= 3.11 (Debian: apt install python3 python3-venv) or say PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), Python >= 3.11 is needed; say PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no ensurepip; install it (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-packager: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[packager]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed-packager

# What cannot be installed is left out, with a line for each benchmark or peer that misses it.
$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]' || echo "make: some peers are not there; they will be skipped"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]' || echo "make: PyTorch is not there; pairs that need training will be skipped"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
