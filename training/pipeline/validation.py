"""Judges an interval by its contracts (expectations.py) with Great Expectations, before anything is sampled from it.

    python -m training.pipeline.validation --source S --archive DIR --begin T --end T --samples DIR --docs DIR

Exit code 0: the contracts are kept, and the interval's statistics become the reference of later intervals. Exit code 2:
the last line names the expectation, the column, what was seen and what is allowed. In both cases the first page of Data
Docs is DIR/<interval>/index.html.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common import process
from common.disk import locked, made_once, replace
from common.errors import InputError
from common.interval import Interval
from streaming.archive.archive import Archive
from streaming.declaration import Declaration
from streaming.source import load
from training.pipeline import expectations
from training.pipeline.expectations import Contract, Statistics

log = process.logger("validation")
SHOWN = 5
"""Unexpected values named in a finding."""
REFERENCE = "validated.json"


@dataclass(frozen=True)
class Verdict:
    """A text for each expectation that failed, the number of expectations, and the first page of the Data Docs.

    `docs` is None if there was nothing to judge.
    """

    findings: list[str]
    expectations: int
    docs: Path | None


NOTHING = Verdict([], 0, None)
"""There was nothing to judge."""


def check(contracts: Sequence[Contract], docs: Path) -> Verdict:
    """Judges each contract by one validation of its whole suite, and writes the Data Docs of all of them to `docs`."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    gx = import_module("great_expectations")
    context = gx.get_context(mode="ephemeral", project_config=_in_memory())
    findings, count = [], 0
    for name, frame, expected in contracts:
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expected))
        asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
        data = asset.add_batch_definition_whole_dataframe(docs.name)
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
        checkpoint = gx.Checkpoint(
            name=name, validation_definitions=[definition], result_format={"result_format": "SUMMARY"}
        )
        outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
        for result in next(iter(outcome.run_results.values())).results:
            count += 1
            if not result.success:
                findings.append(f"{name}: {finding(result.to_json_dict())}")
    with in_place_of(docs) as aside:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(aside)}
        site = {"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": store}
        index = {"site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}
        context.add_data_docs_site(site_name=docs.name, site_config=site | index)
        context.build_data_docs()
        _list_findings(aside, findings)
    return Verdict(sorted(findings), count, docs / "index.html")


def _in_memory() -> Any:
    """The configuration of a context that writes nothing to the disk but our pages, and draws no progress bars."""
    types = import_module("great_expectations.data_context.types.base")
    stores = types.InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    bars = types.ProgressBarsConfig(globally=False)
    return types.DataContextConfig(store_backend_defaults=stores, progress_bars=bars)


@contextmanager
def in_place_of(docs: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `docs`. Of two writers at once, one waits."""
    docs.parent.mkdir(parents=True, exist_ok=True)
    with locked(docs.parent / ".lock"), made_once(docs) as aside:
        yield aside
        shutil.rmtree(docs, ignore_errors=True)


def _list_findings(docs: Path, findings: Sequence[str]) -> None:
    """Puts the findings and links on the first page. Its own list is drawn by scripts from the internet."""
    lines = []
    for page in sorted(docs.glob("validations/*/**/*.html")):
        name = page.relative_to(docs).parts[1]
        texts = [f.removeprefix(f"{name}: ") for f in sorted(findings) if f.startswith(f"{name}: ")] or ["kept"]
        rows = "".join(f"<br>{escape(text)}" for text in texts)
        lines.append(f'<li><a href="{quote(str(page.relative_to(docs)))}">{escape(name)}</a>{rows}</li>')
    index = docs / "index.html"
    text = index.read_text().replace("<body>", f"<body>\n<ul>{''.join(lines)}</ul>", 1)
    index.write_text(text)


def finding(result: dict[str, Any]) -> str:
    """The text of a failed expectation: its name, the column, what was seen and what is allowed."""
    config, seen = result["expectation_config"], result["result"]
    allowed = {k: v for k, v in config["kwargs"].items() if k not in ("batch_id", "column") and v is not None}
    text = f"{config['type']} of {config['kwargs'].get('column', 'the table')}: "
    if (raised := result.get("exception_info") or {}).get("raised_exception"):
        return text + f"could not be judged: {raised.get('exception_message')}"
    if "unexpected_count" in seen:
        values = list(dict.fromkeys(map(str, seen.get("partial_unexpected_list") or [])))[:SHOWN]
        text += f"seen are {seen['unexpected_count']} of {seen['element_count']} values that are not allowed"
        text += f" ({', '.join(values)})" if values and config["type"] != "expect_column_values_to_not_be_null" else ""
    else:
        value = seen.get("observed_value")
        text += "there is no value to judge" if value is None else f"seen is {_number(value)}"
    return f"{text}; {_allowed(config['type'], allowed)}"


def _allowed(kind: str, allowed: dict[str, Any]) -> str:
    share = f" for at least {allowed['mostly']:.1%} of them" if allowed.get("mostly", 1.0) < 1 else ""
    if kind.endswith("not_be_null"):
        return "allowed is no null" + share
    if kind.endswith("be_unique"):
        return "allowed is each value once" + share
    if "value_set" in allowed:
        values = ", ".join(map(str, allowed["value_set"]))
        return f"allowed {'is none of' if 'not_be_in' in kind else 'are'} {values}" + share
    low, high = allowed.get("min_value"), allowed.get("max_value")
    bounds = [f"{'more than' if allowed.get('strict_min') else 'at least'} {_number(low)}"] if low is not None else []
    bounds += [f"{'less than' if allowed.get('strict_max') else 'at most'} {_number(high)}"] if high is not None else []
    return f"allowed is {' and '.join(bounds)}" + share


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def reference(samples: Path, before: Interval) -> tuple[str, Statistics]:
    """The name and statistics of the newest interval that passed and ended before `before`; ("", {}) if none did."""
    names = sorted((p.parent.name for p in samples.glob(f"*/{REFERENCE}")), key=lambda n: Interval.named(n).end_ms)
    earlier = [n for n in names if Interval.named(n).end_ms <= before.begin_ms]
    if not earlier:
        return "", {}
    statistics = json.loads((samples / earlier[-1] / REFERENCE).read_text())
    return earlier[-1], {column: tuple(values) for column, values in statistics.items()}


def validate(archive: Archive, declaration: Declaration, interval: Interval, samples: Path, docs: Path) -> Verdict:
    """Judges the impressions and examples of the interval. An empty interval passes. Raises NotArchived."""
    impressions = archive.read("impressions", interval.begin_ms, interval.end_ms)
    examples = archive.read("examples", interval.begin_ms, interval.end_ms)
    if not impressions.num_rows and not examples.num_rows:
        log.info("%s is empty: there is nothing to judge", interval)
        return NOTHING
    name, statistics = reference(samples, interval)
    log.info("%s: %d impressions, %d examples", interval, impressions.num_rows, examples.num_rows)
    log.info("rates are judged against %s", name or "nothing: no earlier interval has passed")
    day = expectations.examples(examples, declaration, interval, statistics)
    verdict = check([expectations.impressions(impressions, declaration, interval), day], docs / interval.name)
    if not verdict.findings:
        path = samples / interval.name / REFERENCE
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(expectations.statistics(day), sort_keys=True, indent=1).encode())
    return verdict


def docs_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --docs and --docs-at."""
    parser.add_argument("--docs", required=True, type=Path, metavar="DIR", help="where Data Docs go")
    parser.add_argument("--docs-at", default="", metavar="URL", help="where DIR is served (default: a file's link)")


def report(verdict: Verdict, subject: str, facts: dict[str, Any], log: logging.Logger, docs_at: str = "") -> None:
    """Logs a verdict, and prints it as one JSON object. Raises InputError with the first finding, if there is one."""
    findings, page = verdict.findings, ""
    if verdict.docs:
        docs = verdict.docs.resolve()
        page = f"{docs_at}/{quote(docs.parent.name)}/{docs.name}" if docs_at else docs.as_uri()
        log.info("Data Docs: %s", page)
    for text in findings[1:]:
        log.warning("%s", text)
    print(json.dumps({**facts, "expectations": verdict.expectations, "failed": len(findings), "docs": page}))
    if findings:
        rest = f" (and {len(findings) - 1} more, above and in Data Docs)" if findings[1:] else ""
        raise InputError(f"{subject} is refused: {findings[0]}{rest}")
    log.info("%s keeps %d expectations", subject, verdict.expectations)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments(
        "training.pipeline.validation",
        "Judge an interval's impressions and examples by their contracts; write Data Docs.",
        epilog="Exit code 2 if a contract is broken; the last line names expectation, column, seen and allowed.",
    )
    parser.shared("source", "archive", "begin", "end")
    parser.add_argument("--samples", required=True, type=Path, metavar="DIR", help="statistics of days that passed")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    return process.run(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    interval = Interval.of(begin=args.begin, end=args.end)
    declaration = load(args.source).declaration
    verdict = validate(Archive(args.archive, declaration), declaration, interval, args.samples, args.docs)
    report(verdict, str(interval), {}, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
