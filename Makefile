# make demo   set up and run the service on the example data
# make test   set up and run all tests
# make bench  measure the speed beside a limit server (needs wrk)
# make growth  measure what could grow with what is stored, on SQLite and PostgreSQL
# make wheel  build the wheel in dist/

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

# The tests start Python a thousand times, so keep the compiled files, even if the environment disables that.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint bench growth wheel example man clean

demo: $(READY)
	$(BIN)/orchmgmt demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 5 --dist worksteal

# Links make the modules available to mypy and import-linter under the package's name.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/oxlint --config extensions/ui/.oxlintrc.json extensions/ui/static
	$(BIN)/oxfmt --config extensions/ui/.oxfmtrc.json --check extensions/ui/static
	rm -rf build/types && mkdir -p build/types/orchmgmt
	ln -s $(addprefix ../../../,py.typed $(wildcard *.py) $(patsubst %/__init__.py,%,$(wildcard */__init__.py))) build/types/orchmgmt
	MYPYPATH=build/types $(BIN)/mypy -p orchmgmt
	touch build/types/orchmgmt/__init__.py
	PYTHONPATH=build/types $(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python bench/run.py --output bench/RESULTS.md

growth: $(READY)
	$(BIN)/python bench/growth.py
	$(BIN)/python bench/growth.py --postgresql

wheel: $(READY)
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

example: $(READY)
	$(BIN)/python scripts/make_example.py db.sqlite.example

man: $(READY)
	$(BIN)/python scripts/make_man.py docs/orchmgmt.1

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) build dist testing/plugin/*.egg-info
