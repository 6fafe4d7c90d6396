"""The DAGs as Airflow reads them: they load, quickly, and each says whose it is, what it does and when."""

from __future__ import annotations

import subprocess
import sys

from tests.support.airflow_child import PROJECT

FILES = sorted(path.name for path in (PROJECT / "dags").glob("*.py") if path.name != "common.py")
PARSE = """
import sys, time, runpy
import airflow.sdk, airflow.sdk.exceptions
for file in sys.argv[1:]:
    start = time.process_time()
    runpy.run_path(file)
    print(time.process_time() - start)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
HEAVY = {"tensorflow", "keras", "numpy", "pandas", "pyarrow", "great_expectations", "feast", "mlflow", "kafka"}


def test_all_load_and_each_is_one_dag(airflow):
    for daily in (False, True):
        seen = airflow.ask(verb="look", daily=daily)
        assert seen["errors"] == {}
        assert sorted(seen["dags"]) == [name.removesuffix(".py") for name in FILES]


def test_each_has_owner_retries_words_and_one_run_at_a_time(airflow):
    for name, dag in airflow.ask(verb="look", daily=False)["dags"].items():
        assert dag["doc"].startswith("### ") and len(dag["doc"]) > 150, name
        assert dag["at_once"] == 1 and dag["catchup"] is False, name
        assert all(words for words in dag["params"].values()), name
        for task, facts in dag["tasks"].items():
            assert facts["owner"] == "minutehand"
            # Looking again at once would say the same; everything else is tried again.
            assert facts["retries"] == (0 if task == "look" else 1), (name, task)


def test_the_order_of_tasks(airflow):
    dags = airflow.ask(verb="look", daily=False)["dags"]
    order = {name: [(task, facts["after"]) for task, facts in dag["tasks"].items()] for name, dag in dags.items()}
    assert order["sample_examples"] == [
        ("interval", []),
        ("validate", ["interval"]),
        ("features", ["interval", "validate"]),
        ("sample", ["features", "interval"]),
    ]
    assert order["batch_warm_start"] == [
        ("choose", []),
        ("train", ["choose"]),
        ("evaluate", ["choose", "train"]),
        ("promote", ["evaluate", "train"]),
    ]
    assert order["publish_base"] == [("check", []), ("publish", ["check"])]


def test_a_replay_has_no_clock_and_a_live_platform_has(airflow):
    by_hand, by_clock = (airflow.ask(verb="look", daily=daily)["dags"] for daily in (False, True))
    assert by_hand["batch_warm_start"]["assets"] == by_clock["batch_warm_start"]["assets"] == ["examples"]
    for name in by_hand.keys() - {"batch_warm_start"}:
        assert by_hand[name]["schedule"] == "NullTimetable"
        assert by_clock[name]["schedule"] == "CronDataIntervalTimetable"


def test_files_are_thin_and_parsed_without_the_heavy_libraries_in_less_than_two_seconds():
    files = [PROJECT / "dags" / name for name in FILES]
    command = [sys.executable, "-c", PARSE, *map(str, files)]
    output = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=120).stdout
    *seconds, loaded = output.splitlines()
    assert HEAVY.isdisjoint(loaded.split())
    for file, took in zip(files, seconds, strict=True):
        assert float(took) < 2, file  # of processor time: other work on the machine does not count
        assert len(file.read_text().splitlines()) < 60, file
