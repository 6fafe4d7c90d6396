# The commands a person needs; `make` alone lists them.
VENV ?= .venv
PYTHON_IN := $(VENV)/bin/python
CXX_FILES = $(wildcard training/cuckoo/*/*.h training/cuckoo/*/*.cc tests/training/cuckoo/*.h tests/training/cuckoo/*.cc)

# The minute loop's unit tests, for an environment without extras. The slow ones, which kill, start a broker or
# compile, run in .venv alone.
CORE_VENV := build/core-venv
CORE_TESTS = tests/common tests/delta_log tests/features/test_counters.py \
    $(wildcard tests/streaming/test_*.py) tests/streaming/contract tests/streaming/sources \
    tests/streaming/archive/test_archive.py tests/training/cuckoo/test_cuckoo.py tests/training/cuckoo/test_optimizers.py \
    tests/training/models $(patsubst %,tests/training/learn/test_%.py,batch_pass expiry policies state) \
    tests/serving/test_journal.py tests/infra/test_settings.py tests/infra/supervise/test_checks.py
CORE_SLOW := killed or broker or core_without_tensorflow

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## install and build everything that is missing (.venv, table op, Kafka, join)
	@infra/setup.sh

demo: setup ## replay real traffic through the whole platform, then a report (SOURCE=simulator SYNC_EVERY=1s WALL=2m)
	@$(VENV)/bin/minutehand demo $(if $(SOURCE),--source '$(SOURCE)') $(if $(SYNC_EVERY),--set sync_every=$(SYNC_EVERY)) $(if $(WALL),--wall $(WALL))

test: setup ## run all tests: the join's cases, the fast ones, then those that start the real processes
	@infra/setup.sh test
	@echo 'the core without Airflow, Feast, MLflow and Great Expectations'
	@UV_PROJECT_ENVIRONMENT=$(CORE_VENV) build/tools/bin/uv sync -q --frozen --python $(PYTHON_IN)
	@$(CORE_VENV)/bin/python -m pytest $(CORE_TESTS) -k 'not ($(CORE_SLOW))' -n 2 --dist loadfile
	@echo 'the tests of the table core (C++), compiled on all cores'
	@$(MAKE) -s -j$$(nproc) cuckoo-tests
	@echo 'the cases of the join (Maven)'
	@mvn -q -B -ntp -f streaming/join/pom.xml test
	@# two at a time, a file to one worker: most of them wait for a process
	@$(PYTHON_IN) -m pytest tests -m 'not e2e' -n 2 --dist loadfile --durations=25
	@$(PYTHON_IN) -m pytest tests -m e2e --durations=25

check: setup ## lint: ruff, mypy, clang-format, docker-compose.yml, and the lock
	@infra/setup.sh lint
	@$(PYTHON_IN) -m ruff check .
	@$(PYTHON_IN) -m mypy
	@clang-format --dry-run -Werror $(CXX_FILES)
	@docker-compose --env-file tests/infra/compose.env config -q
	@$(PYTHON_IN) -m infra.tools.lock_guard uv.lock
	@build/tools/bin/uv lock --check -q
	@echo 'check: all clean'

bench: setup ## run the benchmarks; each prints a table and writes its JSON
	@for file in benchmarks/*.py; do echo "$$file"; $(PYTHON_IN) $$file || exit 1; done

include training/cuckoo/build.mk
