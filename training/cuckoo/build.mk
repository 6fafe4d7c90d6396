# The table's op and its core's tests: plain g++ against the TensorFlow wheel of $(VENV). Included by the Makefile.
# TensorFlow is found by its path: importing it would take seconds at every make.
VENV ?= .venv
CUCKOO := training/cuckoo
CUCKOO_BUILD := build/cuckoo
CUCKOO_SO := $(CUCKOO)/_cuckoo.so
CUCKOO_TF = $(firstword $(wildcard $(VENV)/lib/python3*/site-packages/tensorflow))
CUCKOO_TF_INFO = $(firstword $(foreach name,tensorflow tensorflow_cpu,$(wildcard $(dir $(CUCKOO_TF))$(name)-*.dist-info)))
CUCKOO_TF_VERSION = $(lastword $(subst -, ,$(basename $(notdir $(CUCKOO_TF_INFO)))))
CUCKOO_FLAGS := -std=c++20 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -Wall -Wextra -I. -MMD -MP

.PHONY: cuckoo cuckoo-tests cuckoo-fuzz FORCE
FORCE:
cuckoo: $(CUCKOO_SO)

# Written only when the version of TensorFlow itself changes: another package in the lock is no reason to compile.
CUCKOO_TF_LAST := $(shell cat $(CUCKOO_BUILD)/tensorflow.version 2>/dev/null)
$(CUCKOO_BUILD)/tensorflow.version: $(if $(filter $(CUCKOO_TF_VERSION),$(CUCKOO_TF_LAST)),,FORCE)
	@mkdir -p $(@D)
	@test -d "$(CUCKOO_TF)/include" || { echo "the table op: no TensorFlow in $(VENV): run make setup" >&2; exit 1; }
	@echo $(CUCKOO_TF_VERSION) > $@

CUCKOO_OBJECTS := $(patsubst %,$(CUCKOO_BUILD)/%.o,ops signatures admission_ops)
$(CUCKOO_OBJECTS): $(CUCKOO_BUILD)/%.o: $(CUCKOO)/op/%.cc $(CUCKOO_BUILD)/tensorflow.version $(CUCKOO)/build.mk
	@# -w: TensorFlow's own headers and macros warn by the hundred; the core is held to -Wall by its tests
	@echo "compiling the table op's $(<F) against TensorFlow $$(cat $(CUCKOO_BUILD)/tensorflow.version) (about half a minute)"
	@$(CXX) $(CUCKOO_FLAGS) -fPIC -fvisibility=hidden -w -isystem $(CUCKOO_TF)/include -D_GLIBCXX_USE_CXX11_ABI=1 \
	    -DEIGEN_MAX_ALIGN_BYTES=64 -DCUCKOO_TENSORFLOW='"'$$(cat $(CUCKOO_BUILD)/tensorflow.version)'"' -c $< -o $@

# Linked aside and renamed: a process that has the old one loaded keeps it whole.
$(CUCKOO_SO): $(CUCKOO_OBJECTS)
	@$(CXX) -shared $^ -o $(CUCKOO_BUILD)/_cuckoo.so -L$(CUCKOO_TF) -l:libtensorflow_framework.so.2
	@mv $(CUCKOO_BUILD)/_cuckoo.so $@

# The core without TensorFlow: plain, under the sanitizers of address and undefined behaviour, and, for the tests that
# begin threads, under that of threads.
CUCKOO_TESTS := tests/training/cuckoo
CUCKOO_TEST_FLAGS := $(CUCKOO_FLAGS) -Werror -pthread
CUCKOO_PLAIN := $(patsubst %,$(CUCKOO_BUILD)/%_test,core stress file fuzz admission row)
CUCKOO_SANITIZED := $(patsubst %,$(CUCKOO_BUILD)/%_test_thread,core stress admission) $(CUCKOO_PLAIN:%=%_address)

# core_test lets chosen allocations fail
$(filter %/core_test,$(CUCKOO_PLAIN)) $(filter $(CUCKOO_BUILD)/core_test_%,$(CUCKOO_SANITIZED)): \
    CUCKOO_TEST_FLAGS += -Wl,--wrap=aligned_alloc,--wrap=mprotect

# All of them, compiled and run. A run's output is kept in <test>.passed: who has passed runs again when compiled anew.
CUCKOO_PASSED := $(patsubst %,%.passed,$(CUCKOO_SANITIZED) $(CUCKOO_PLAIN))
cuckoo-tests: $(CUCKOO_PASSED)

$(CUCKOO_PASSED): %.passed: %
	@$< > $<.out 2>&1 || { echo "$< failed with $$?:" >&2; cat $<.out >&2; exit 1; }
	@mv $<.out $@

# A minute of libFuzzer, which is clang's; what it finds is left in $(CUCKOO_BUILD).
cuckoo-fuzz:
	@mkdir -p $(CUCKOO_BUILD)/corpus
	@clang++ -std=c++20 -O1 -g -I. -pthread -DCUCKOO_LIBFUZZER -fsanitize=fuzzer,address $(CUCKOO_TESTS)/fuzz_test.cc \
	    -o $(CUCKOO_BUILD)/fuzz
	@$(CUCKOO_BUILD)/fuzz -max_total_time=60 -artifact_prefix=$(CUCKOO_BUILD)/ $(CUCKOO_BUILD)/corpus

$(CUCKOO_BUILD)/%_test: $(CUCKOO_TESTS)/%_test.cc $(CUCKOO)/build.mk
	@mkdir -p $(@D)
	@$(CXX) $(CUCKOO_TEST_FLAGS) $< -o $@
$(CUCKOO_BUILD)/%_test_thread: $(CUCKOO_TESTS)/%_test.cc $(CUCKOO)/build.mk
	@mkdir -p $(@D)
	@$(CXX) $(CUCKOO_TEST_FLAGS) -O1 -g1 -fsanitize=thread $< -o $@
$(CUCKOO_BUILD)/%_test_address: $(CUCKOO_TESTS)/%_test.cc $(CUCKOO)/build.mk
	@mkdir -p $(@D)
	@$(CXX) $(CUCKOO_TEST_FLAGS) -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all $< -o $@

-include $(wildcard $(CUCKOO_BUILD)/*.d)
