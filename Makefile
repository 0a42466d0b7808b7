# Every target makes the virtual environment .venv first, from the lock file, if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test lint bench soak lock audit

venv: .venv/installed

# Where Python comes without ensurepip (Debian's does), the pip of $(PYTHON) fills the environment.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "nst needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv || $(PYTHON) -m venv --without-pip --clear .venv
	$(BIN)/python -m pip --version || $(PYTHON) -m pip --python $(BIN)/python install pip
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: venv
	$(BIN)/nst demo

test: venv
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	$(BIN)/python -m benchmarks

# Half an hour of random faults under load.
soak: venv
	$(BIN)/python -m benchmarks.soak --minutes 30

# Needs uv on the path; run it after a change of the dependencies in pyproject.toml.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev pyproject.toml -o requirements.lock

# Needs uv on the path and a way to api.osv.dev: has a package of the lock file a known weakness?
audit:
	uvx pip-audit --vulnerability-service osv --disable-pip --require-hashes -r requirements.lock
