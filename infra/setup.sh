#!/usr/bin/env bash
# Makes a bare Debian or Ubuntu ready: system packages, .venv, the table op, Kafka's jars, the join. `make setup` calls it.
# What is done is not done again; a step that is current takes no time. Logs of the steps: build/setup/*.log
#   infra/setup.sh          all of it
#   infra/setup.sh lint     clang-format, for `make check`
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV_VERSION=0.13.9
LOGS=build/setup
mkdir -p "$LOGS"
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# step NAME TEXT COMMAND...: runs it with its output in a log; if it fails, one line says what and why.
step() {
    local name=$1 text=$2 began=$SECONDS
    shift 2
    say "$text"
    if ! "$@" >"$LOGS/$name.log" 2>&1 </dev/null; then
        local why
        why=$(grep -aE '\[ERROR\]|^E: |[Ee]rror:|ERROR:|× |Caused by' "$LOGS/$name.log" | head -n 1 | cut -c 1-300 || true)
        [ -n "$why" ] || why=$(tail -n 1 "$LOGS/$name.log" | cut -c 1-300)
        fail "$text failed: ${why:-no output} (all of it: $LOGS/$name.log; the packages come over the network)"
    fi
    say "$text: done in $((SECONDS - began)) s"
}

# install PACKAGE...: by apt when root, else says the command.
install() {
    [ $# -gt 0 ] || return 0
    local command="apt-get install -y --no-install-recommends $*"
    command -v apt-get >/dev/null || fail "missing: $*; install them with your system's package manager, then run this again"
    [ "$(id -u)" = 0 ] || fail "missing: $*; install them with: sudo $command"
    export DEBIAN_FRONTEND=noninteractive
    step apt-update "reading the package lists" apt-get update -q
    step apt "installing $*" $command
}

if [ "${1:-}" = lint ]; then
    command -v clang-format >/dev/null || install clang-format
    exit 0
fi

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "this machine is $(uname -s) $(uname -m); allowed is Linux x86_64"

# A Python of 3.11 to 3.13 that can make environments; prints its path.
in_range() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
can_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
find_python() {
    local p
    for p in ${PYTHON:+"$PYTHON"} .venv/bin/python python3 python3.13 python3.12 python3.11; do
        if in_range "$p" && can_venv "$p"; then
            "$p" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    return 1
}

# javac and java of 17 or newer, those that JAVA_HOME or PATH give.
java_major() { "${JAVA_HOME:+$JAVA_HOME/bin/}$1" -version 2>&1 | sed -nE 's/^(javac |.*version ")([0-9]+).*/\2/p' | head -n 1; }

python=
system() {
    if [ -n "${PYTHON:-}" ] && ! in_range "$PYTHON"; then
        fail "PYTHON is '$PYTHON' ($("$PYTHON" -V 2>/dev/null || echo 'it does not run')); allowed is Python 3.11 to 3.13"
    fi
    local missing=() jdk jre
    python=$(find_python) || missing+=(python3 python3-venv)
    command -v g++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    jdk=$(java_major javac || true) jre=$(java_major java || true)
    if [ "${jdk:-0}" -lt 17 ] || [ "${jre:-0}" -lt 17 ]; then
        [ -z "${JAVA_HOME:-}" ] || fail "JAVA_HOME is '$JAVA_HOME' (javac ${jdk:-absent}, java ${jre:-absent}); allowed is a JDK of 17 or newer"
        missing+=(default-jdk-headless)
    fi
    command -v mvn >/dev/null || missing+=(maven)
    [ ${#missing[@]} -gt 0 ] || return 0
    install "${missing[@]}"
    python=$(find_python) || fail "no Python 3.11 to 3.13 that can make environments was found (python3 is $(python3 -V 2>&1 || echo absent)); install one and name it: PYTHON=/path/to/python3.12 make setup"
    jdk=$(java_major javac || true)
    [ "${jdk:-0}" -ge 17 ] || fail "javac is ${jdk:-absent} after the installation; allowed is a JDK of 17 or newer"
}

# Each stamp is newer than all it was made from.
current() {
    local stamp=$1 from
    shift
    [ -e "$stamp" ] || return 1
    for from in "$@"; do [ ! "$from" -nt "$stamp" ] || return 1; done
}

environment() {
    if current "$LOGS/environment" uv.lock pyproject.toml && [ -x .venv/bin/minutehand ] && .venv/bin/python -c '' 2>/dev/null; then return; fi
    local compile=()
    if [ "$(build/tools/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$UV_VERSION" ]; then
        rm -rf build/tools
        step tools "making build/tools with $("$python" -V)" "$python" -m venv build/tools
        step uv "installing uv $UV_VERSION" build/tools/bin/python -m pip install -q --disable-pip-version-check "uv==$UV_VERSION"
    fi
    [ -e .venv ] || compile=(--compile-bytecode) # it scans 18 000 files: worth it once
    step environment "installing the Python packages of uv.lock into .venv (640 MB to download the first time)" \
        build/tools/bin/uv sync --frozen --python "$python" ${compile[@]+"${compile[@]}"}
    touch "$LOGS/environment"
}

kafka() {
    current "$LOGS/kafka" infra/kafka/pom.xml && [ -d build/kafka/libs ] && return
    rm -rf build/kafka/libs
    step kafka-jars "fetching Kafka (55 MB)" mvn -B -ntp -f infra/kafka/pom.xml package
    touch "$LOGS/kafka"
}

join() {
    [ -f streaming/join/pom.xml ] || return 0
    if [ -e build/join.jar ] && [ -d build/flink/libs ] && current "$LOGS/join" streaming/join/pom.xml &&
        [ -z "$(find streaming/join/src/main -newer "$LOGS/join" -print -quit)" ]; then return; fi
    local aside=$PWD/build/setup/join.new
    rm -rf "$aside"
    touch "$LOGS/join.began"
    step join-jar "building the join, with Flink (154 MB the first time)" \
        mvn -B -ntp -f streaming/join/pom.xml -Dmaven.test.skip=true "-Dminutehand.build=$aside" package
    # By rename: a join that runs keeps the jar it has open.
    if ! current "$LOGS/join" streaming/join/pom.xml || [ ! -d build/flink/libs ]; then
        mkdir -p build/flink
        rm -rf build/flink/libs
        mv "$aside/flink/libs" build/flink/libs
    fi
    mv -f "$aside/join.jar" build/join.jar
    rm -rf "$aside"
    mv "$LOGS/join.began" "$LOGS/join"
}

table() {
    make --no-print-directory -q cuckoo 2>/dev/null ||
        step cuckoo "compiling the table op (about half a minute)" make --no-print-directory cuckoo
}

began=$SECONDS
system
environment
kafka
join
table
if [ $((SECONDS - began)) -gt 2 ]; then say "all is there, after $((SECONDS - began)) s"; fi
