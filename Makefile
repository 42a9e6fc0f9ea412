# The two commands of the README are `make demo` and `make test`; both set everything up first.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= demo
LLM ?= opt
# Three on two cores: tests of servers, launchers and limits wait more than they compute.
WORKERS ?= 3

.PHONY: help demo test drill lint check docs install clean

help:
	@echo "make demo    make a small world, train on it, predict, score, report (8 to 20 minutes on 2 cores)"
	@echo "make demo LLM=t5   the same with FlanT5 in OPT's place"
	@echo "make test    run every test (9 to 27 minutes on 2 cores; WORKERS=1 for one process)"
	@echo "make drill   the trials that are too long for make test: docs/reliability.md; PART=NAME runs one part, DRILL='-k NAME' some trials"
	@echo "make check   ruff, mypy and make test: what CI runs"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make clean   remove the demo's folder and the virtual environment"

install: $(VENV)/.installed

$(VENV)/.installed: setup.py constraints.txt
	@echo "== setting up $(VENV): downloads and installs about 2 GB the first time"
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python >= 3.10 or say PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: could not make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt torch setuptools
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[points,clouds,s3,http,kernels,serve,eval,mine,dev,docs]'
	@touch $@

demo: install
	@$(RUN) -m rb.cli toy demo --out $(DEMO) --llm $(LLM)

test: install
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

drill: install
	@$(RUN) -m pytest -m drill -rP --timeout 3600 --durations 0 tests/drill$(if $(PART),/test_$(PART).py) $(DRILL); \
		code=$$?; $(RUN) -m tests.support.reliability_page; exit $$code

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

check: lint test

docs: install
	$(RUN) -m mkdocs build --strict --quiet

clean:
	rm -rf $(DEMO) $(VENV)
