# The commands a person needs; `make` alone lists them.
VENV ?= .venv
PYTHON_IN := $(VENV)/bin/python
CXX_FILES = $(wildcard training/cuckoo/*/*.h training/cuckoo/*/*.cc tests/training/cuckoo/*.h tests/training/cuckoo/*.cc)

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
	@echo 'the cases of the join (Maven)'
	@mvn -q -B -ntp -f streaming/join/pom.xml test
	@# two at a time, a file to one worker: most of them wait for a process
	@$(PYTHON_IN) -m pytest tests -m 'not e2e' -n 2 --dist loadfile
	@$(PYTHON_IN) -m pytest tests -m e2e

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
