# The commands a person needs; `make` alone lists them.
VENV ?= .venv
PYTHON_IN := $(VENV)/bin/python
CXX_FILES = $(wildcard training/cuckoo/*/*.h training/cuckoo/*/*.cc tests/training/cuckoo/*.h tests/training/cuckoo/*.cc)

# The minute loop's unit tests. They run in an environment without extras, and not once more in .venv.
CORE_VENV := build/core-venv
CORE_TESTS = tests/common $(wildcard tests/delta_log/test_[!k]*.py) $(wildcard tests/features/profile/test_[!r]*.py) \
    $(wildcard tests/streaming/test_*.py) tests/streaming/contract tests/streaming/sources \
    tests/training/cuckoo/test_optimizers.py tests/training/models \
    $(patsubst %,tests/training/learn/test_%.py,batch_pass expiry state) \
    tests/serving/test_journal.py tests/infra/test_settings.py tests/infra/supervise/test_checks.py

# $(call step,COMMAND): runs it, then a line says how long it took.
step = @began=$$(date +%s); { $(1); } || exit; echo "step: $@ $$(($$(date +%s) - began)) s"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-core test-cuckoo test-join check bench

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: ## install and build everything that is missing (.venv, table op, Kafka, join)
	@infra/setup.sh

demo: setup ## replay real traffic through the whole platform, then a report (SOURCE=simulator SYNC_EVERY=1s WALL=2m)
	@$(VENV)/bin/minutehand demo $(if $(SOURCE),--source '$(SOURCE)') $(if $(SYNC_EVERY),--set sync_every=$(SYNC_EVERY)) $(if $(WALL),--wall $(WALL))

# A test's JVM lives for seconds. The second compiler and the parallel collector would double its processor time.
test: export JDK_JAVA_OPTIONS := -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
test: export PATH := $(CURDIR)/tests/support/bin:$(PATH)
# Each module is compiled once, and not in each of the hundreds of processes.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup ## run all tests: those of C++, of the core alone and of the join beside each other, then all others, then the real processes
	@infra/setup.sh test
	@$(MAKE) -s -j$$(nproc) --output-sync=target test-core test-cuckoo test-join
	$(call step,$(PYTHON_IN) -m tests.support.classes)
	@# Two at a time, a file to one worker, the longest first (tests/conftest.py); then whole platforms in the same way.
	$(call step,$(PYTHON_IN) -m pytest tests -m 'not e2e' $(CORE_TESTS:%=--ignore=%) -n 2 --dist loadfile --no-loadscope-reorder --durations=25)
	$(call step,$(PYTHON_IN) -m pytest tests -m e2e -n 2 --dist loadfile --no-loadscope-reorder --durations=25)

test-core: # an environment without Airflow, Feast, MLflow and Great Expectations: a copy of .venv (links), less those
	$(call step,{ [ -e $(CORE_VENV) ] || cp -al $(VENV) $(CORE_VENV); } && \
	    UV_PROJECT_ENVIRONMENT=$(CORE_VENV) build/tools/bin/uv sync -q --frozen --python $(PYTHON_IN) && \
	    $(CORE_VENV)/bin/python -m pytest -q $(CORE_TESTS))

test-cuckoo: # the table's core, in C++
	$(call step,$(MAKE) -s cuckoo-tests)

test-join: # the join's cases, in Java
	$(call step,mvn -C -q -B -ntp -f streaming/join/pom.xml test)

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
