# Everything that a person does with the project, from a fresh clone on. `make` alone says what there is.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python -m
BENCH ?=
FUZZ ?=
SUITES ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check soak bench suites fuzz servers

help: ## say what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/installed ## start real servers and the gateway, and watch reads and writes split
	@$(PYTHON) scripts/set_up.py demo
	$(RUN) gateway demo

test: $(VENV)/installed servers ## run every test, on real servers
	$(RUN) pytest -n 3 --dist loadfile --no-loadscope-reorder -o faulthandler_timeout=300 $(PYTEST)

check: $(VENV)/installed ## ruff, the formatter, mypy and the fast tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) pytest -q -n 2 --dist loadfile -m "not servers and not slow"

# Each of these tests is part of `make test`, where it is short.
soak: export ISOLATION_SESSIONS = 200
soak: export ISOLATION_STATEMENTS = 100
soak: export ACTIVE_ROUNDS = 10
soak: export IDLE_CLIENTS = 10000
soak: export FRESHNESS_SECONDS = 120
soak: export GATEWAY_ORACLE_SECONDS = 300
soak: export DIFFERENTIAL_SEEDS = 20
soak: export GATEWAY_FUZZ_EXAMPLES = 5000
soak: export SYSBENCH_SECONDS = 20
soak: $(VENV)/installed servers ## the tests whose length matters, at full length (PYTEST="-k isolation")
	$(RUN) pytest -v tests/system/test_sql_isolation.py tests/system/test_sql_multiplexing.py \
		tests/system/test_sql_freshness.py tests/system/test_sql_oracle.py tests/system/test_sql_differential.py \
		tests/system/test_sql_sysbench.py tests/routing/test_sql_fold_property.py \
		tests/protocol/mysql/test_mysql_fuzz_seeds.py $(PYTEST)

bench: $(VENV)/installed servers ## measure the gateway beside its peers (BENCH="--quick" and other options)
	$(VENV)/bin/python benchmarks/bench.py $(BENCH)

suites: $(VENV)/installed servers ## run other people's test suites, directly and through the gateway (SUITES="--suite django")
	@$(PYTHON) scripts/set_up.py suites
	$(VENV)/bin/python tests/suites/run_suites.py $(SUITES)

fuzz: $(VENV)/installed ## fuzz the decoders and the classifier for 60 s (FUZZ="--seconds 600 classifier")
	$(VENV)/bin/pip install --quiet --group fuzz
	$(VENV)/bin/python scripts/fuzz.py $(FUZZ)

servers: ## get the servers that the tests start, from Debian's packages
	@$(PYTHON) scripts/set_up.py servers

$(VENV)/installed: pyproject.toml
	@$(PYTHON) scripts/set_up.py python
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) pip install --quiet --upgrade 'pip>=25.1'
	$(RUN) pip install --quiet --editable . --group dev
	@touch $@
