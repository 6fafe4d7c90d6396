#!/usr/bin/env bash
# Makes a bare Debian or Ubuntu ready: system packages, .venv, the table op, Kafka's jars, the join. `make setup` calls it.
# What is done is not done again; a step that is current takes no time. Logs of the steps: build/setup/*.log
#   infra/setup.sh          all of it
#   infra/setup.sh lint     clang-format and docker-compose, for `make check`
#   infra/setup.sh test     PostgreSQL and Redis, for `make test`: it starts servers of its own
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Java finds no class below a name with four-byte characters, not even by a link. So `build` of such a folder is a link
# to a folder of this user's cache.
if LC_ALL=C grep -q $'[\xf0-\xf7]' <<<"$(pwd -P)"; then
    place=${XDG_CACHE_HOME:-$HOME/.cache}/minutehand/$(pwd -P | sha256sum | cut -c 1-16)
    mkdir -p "$place"
    [ "$(readlink build)" = "$place" ] || { rm -rf build && ln -s "$place" build; }
fi

UV_VERSION=0.13.9
UV_SHA256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 # of its wheel for Linux x86_64
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
    [ "$(id -u)" = 0 ] || fail "missing: $*; install them with: sudo apt-get update && sudo $command"
    export DEBIAN_FRONTEND=noninteractive
    step apt-update "reading the package lists" apt-get update -q
    step apt "installing $*" $command
}

# packages PROGRAM...: those of a package of their own name that are not there.
packages() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
}

missing=()
case ${1:-} in
lint)
    packages clang-format docker-compose
    install ${missing[@]+"${missing[@]}"}
    exit 0
    ;;
test)
    packages redis-server
    PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin) command -v initdb >/dev/null || missing+=(postgresql)
    install ${missing[@]+"${missing[@]}"}
    exit 0
    ;;
esac

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

# A stamp holds the digest of what its step was made from: a checkout that changes dates only makes nothing again.
# It is taken before the step: a file that changes during it is seen the next time.
digest() { sha256sum "$@" | sha256sum | cut -d ' ' -f 1; }
current() { [ -e "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# replace NEW OLD: NEW takes OLD's place, and only if it differs. A process that runs has most of its jars open and finds
# the others by their names: they are away for the instant between two renames, not for as long as Maven works.
replace() {
    if diff -rq "$1" "$2" >/dev/null 2>&1; then return; fi
    mkdir -p "$(dirname "$2")"
    rm -rf "$2.old"
    [ ! -e "$2" ] || mv "$2" "$2.old"
    mv "$1" "$2"
    rm -rf "$2.old"
}

environment() {
    local made compile=()
    made="$PWD $(digest uv.lock pyproject.toml)"
    if current "$LOGS/environment" "$made" && [ -x .venv/bin/minutehand ] && .venv/bin/python -c '' 2>/dev/null; then return; fi
    if [ "$(build/tools/bin/uv --version 2>/dev/null | cut -d ' ' -f 2)" != "$UV_VERSION" ]; then
        rm -rf build/tools
        step tools "making build/tools with $("$python" -V)" "$python" -m venv build/tools
        echo "uv==$UV_VERSION --hash=sha256:$UV_SHA256" >build/tools/uv.txt
        step uv "installing uv $UV_VERSION" build/tools/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r build/tools/uv.txt
    fi
    # The commands in .venv/bin name their folder: a project that was moved needs new ones.
    case $(cat "$LOGS/environment" 2>/dev/null) in '' | "$PWD "*) ;; *) rm -rf .venv ;; esac
    [ -e .venv ] || compile=(--compile-bytecode) # it scans 18 000 files: worth it once
    step environment "installing the Python packages of uv.lock into .venv (640 MB to download the first time)" \
        build/tools/bin/uv sync --frozen --all-extras --python "$python" ${compile[@]+"${compile[@]}"}
    echo "$made" >"$LOGS/environment"
}

kafka() {
    local made aside=$PWD/build/setup/kafka.new
    made=$(digest infra/kafka/pom.xml)
    if current "$LOGS/kafka" "$made" && [ -d build/kafka/libs ]; then return; fi
    rm -rf "$aside"
    step kafka-jars "fetching Kafka (55 MB)" mvn -C -B -ntp -f infra/kafka/pom.xml "-Dminutehand.build=$aside" package
    replace "$aside/kafka/libs" build/kafka/libs
    rm -rf "$aside"
    echo "$made" >"$LOGS/kafka"
}

join() {
    local made aside=$PWD/build/setup/join.new sources
    mapfile -t sources < <(find streaming/join/src/main -type f | sort)
    made=$(digest streaming/join/pom.xml streaming/contract/schema.json "${sources[@]}")
    if current "$LOGS/join" "$made" && [ -e build/join.jar ] && [ -d build/flink/libs ]; then return; fi
    rm -rf "$aside"
    step join-jar "building the join, with Flink (154 MB the first time)" \
        mvn -C -B -ntp -f streaming/join/pom.xml -Dmaven.test.skip=true "-Dminutehand.build=$aside" package
    replace "$aside/flink/libs" build/flink/libs
    mv -f "$aside/join.jar" build/join.jar # a join that runs keeps the jar it has open
    rm -rf "$aside"
    echo "$made" >"$LOGS/join"
}

table() {
    make --no-print-directory -q cuckoo 2>/dev/null ||
        step cuckoo "compiling the table op (about half a minute)" make --no-print-directory -j"$(nproc)" cuckoo
}

# beside FUNCTION...: all at once; returns when all have ended, and fails if one of them did. Ctrl-C ends them all.
beside() {
    local part job jobs=() failed=
    trap 'trap - INT TERM; kill 0' INT TERM # a shell's background jobs ignore Ctrl-C
    for part in "$@"; do
        "$part" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || failed=yes; done
    trap - INT TERM
    [ -z "$failed" ] || exit 1
}
jars() { kafka; join; } # one after the other: both fill the same folder of Maven's

began=$SECONDS
system
beside environment jars
table
if [ $((SECONDS - began)) -gt 2 ]; then say "all is there, after $((SECONDS - began)) s"; fi
