"""Whether an interval keeps its contracts (expectations.py), judged by Great Expectations before anybody learns.

    python -m training.pipeline.validation --source S --archive DIR --begin T --end T --samples DIR --docs DIR

Exit 0: it does, and its statistics are the reference of the days after it. Exit 2: the last line names the expectation,
the column, what was seen and what is allowed. Either way Data Docs of the interval are in DIR/<interval>/index.html.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.interval import Interval, milliseconds
from streaming.archive.archive import Archive, NotArchived
from streaming.declaration import Declaration
from streaming.source import load
from training.pipeline import expectations as contracts
from training.pipeline.expectations import Contract, Statistics

log = logging.getLogger("validation")
SHOWN = 5
"""Unexpected values named in a finding."""
REFERENCE = "validated.json"


@dataclass(frozen=True)
class Verdict:
    """`findings` in words, none if the contracts are kept; `docs` is the page (None: there was nothing to judge)."""

    findings: list[str]
    expectations: int
    docs: Path | None


def check(judged: Sequence[Contract], docs: Path) -> Verdict:
    """Judges each contract by one validation of its whole suite, and writes Data Docs of all of them to `docs`."""
    gx = _quiet_gx()
    context = gx.get_context(mode="ephemeral", project_config=_in_memory())
    docs.parent.mkdir(parents=True, exist_ok=True)
    aside = docs.with_name(f".{docs.name}.{os.getpid()}")
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(aside)}
    site = {"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": store}
    index = {"site_index_builder": {"class_name": "DefaultSiteIndexBuilder"}}
    context.add_data_docs_site(site_name=docs.name, site_config=site | index)
    findings, count = [], 0
    for name, frame, expectations in judged:
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
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
    try:
        context.build_data_docs()
        _front(aside, findings)
        put_in_place(aside, docs)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Verdict(sorted(findings), count, docs / "index.html")


def _front(docs: Path, findings: Sequence[str]) -> None:
    """Findings and links on the first page: its own list is drawn by scripts from the internet, or not at all."""
    lines = []
    for page in sorted(docs.glob("validations/*/**/*.html")):
        name = page.relative_to(docs).parts[1]
        said = [f.removeprefix(f"{name}: ") for f in sorted(findings) if f.startswith(f"{name}: ")] or ["kept"]
        words = "".join(f"<br>{escape(f)}" for f in said)
        lines.append(f'<li><a href="{quote(str(page.relative_to(docs)))}">{escape(name)}</a>{words}</li>')
    index = docs / "index.html"
    text = index.read_text().replace("<body>", f"<body>\n<ul>{''.join(lines)}</ul>", 1)
    index.write_text(text)


def finding(result: dict[str, Any]) -> str:
    """One failed expectation in words: its name, the column, what was seen and what is allowed."""
    config, seen = result["expectation_config"], result["result"]
    allowed = {k: v for k, v in config["kwargs"].items() if k not in ("batch_id", "column") and v is not None}
    said = f"{config['type']} of {config['kwargs'].get('column', 'the table')}: "
    if (raised := result.get("exception_info") or {}).get("raised_exception"):
        return said + f"could not be judged: {raised.get('exception_message')}"
    if "unexpected_count" in seen:
        values = list(dict.fromkeys(map(str, seen.get("partial_unexpected_list") or [])))[:SHOWN]
        said += f"seen are {seen['unexpected_count']} of {seen['element_count']} values that are not allowed"
        said += f" ({', '.join(values)})" if values and config["type"] != "expect_column_values_to_not_be_null" else ""
    else:
        said += f"seen is {_number(seen.get('observed_value'))}"
    return f"{said}; {_allowed(config['type'], allowed)}"


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
    """The newest day that passed and ended by the begin of `before`: its name and statistics ("", {}: none yet)."""
    names = sorted((p.parent.name for p in samples.glob(f"*/{REFERENCE}")), key=lambda n: Interval.named(n).end_ms)
    earlier = [n for n in names if Interval.named(n).end_ms <= before.begin_ms]
    if not earlier:
        return "", {}
    kept = json.loads((samples / earlier[-1] / REFERENCE).read_text())
    return earlier[-1], {column: tuple(values) for column, values in kept.items()}


def validate(archive: Archive, declaration: Declaration, interval: Interval, samples: Path, docs: Path) -> Verdict:
    """Impressions and examples of the interval. Nothing at all is nothing against it. Raises NotArchived."""
    shown = archive.read("impressions", interval.begin_ms, interval.end_ms)
    learned = archive.read("examples", interval.begin_ms, interval.end_ms)
    if not shown.num_rows and not learned.num_rows:
        log.info("%s is empty: there is nothing to judge", interval)
        return Verdict([], 0, None)
    name, known = reference(samples, interval)
    log.info("%s: %d impressions, %d examples", interval, shown.num_rows, learned.num_rows)
    log.info("rates are judged against %s", name or "nothing: no earlier interval has passed")
    day = contracts.examples(learned, declaration, interval, known)
    verdict = check([contracts.impressions(shown, declaration, interval), day], docs / interval.name)
    if not verdict.findings:
        kept = samples / interval.name / REFERENCE
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{REFERENCE}.{os.getpid()}")
        aside.write_text(json.dumps(contracts.statistics(day), sort_keys=True, indent=1))
        aside.rename(kept)
    return verdict


def docs_arguments(parser: argparse.ArgumentParser) -> None:
    """--docs and --docs-at."""
    parser.add_argument("--docs", required=True, type=Path, metavar="DIR", help="where Data Docs go")
    parser.add_argument("--docs-at", default="", metavar="URL", help="where DIR is served (none: a file's link)")


def report(verdict: Verdict | None, what: str, facts: dict[str, Any], to: logging.Logger, docs_at: str = "") -> int:
    """The exit code of a verdict (None: nothing to judge), said in the log and as one JSON object on stdout."""
    findings = verdict.findings if verdict else []
    page = ""
    if verdict and verdict.docs:
        docs = verdict.docs.resolve()
        page = f"{docs_at}/{quote(docs.parent.name)}/{docs.name}" if docs_at else docs.as_uri()
    for words in findings[1:]:
        to.warning("%s", words)
    if page:
        to.info("Data Docs: %s", page)
    count = verdict.expectations if verdict else 0
    print(json.dumps({**facts, "expectations": count, "failed": len(findings), "docs": page}))
    if findings:
        rest = f" (and {len(findings) - 1} more, above and in Data Docs)" if findings[1:] else ""
        to.error("%s is refused: %s%s", what, findings[0], rest)
        return 2
    to.info("%s keeps %d expectations", what, count)
    return 0


def _quiet_gx() -> Any:
    # It logs a line for each function it registers, counts its users, and draws bars.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations

    return great_expectations


def _in_memory() -> Any:
    """Nothing on disk but our pages, and no progress bars."""
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    return DataContextConfig(store_backend_defaults=stores, progress_bars=ProgressBarsConfig(globally=False))


def put_in_place(aside: Path, docs: Path) -> None:
    """Moves a folder to where an older one may lie; of two who do it at once, one waits."""
    with open(docs.parent / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        shutil.rmtree(docs, ignore_errors=True)
        aside.rename(docs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "training.pipeline.validation",
        description="Judge an interval's impressions and examples by their contracts; write Data Docs.",
        epilog="Exit 2 and a line that names expectation, column, seen and allowed where a contract is broken.",
    )
    parser.add_argument("--source", required=True, help="kuairand, simulator?seed=7, a module, or a path to a .py file")
    parser.add_argument(
        "--archive", required=True, type=Path, metavar="DIR", help="what streaming.archive.archiver wrote"
    )
    parser.add_argument("--begin", required=True, metavar="T", help="event time: ms, or 2022-05-07T06:00:00 (UTC)")
    parser.add_argument("--end", required=True, metavar="T", help="event time, not included")
    parser.add_argument("--samples", required=True, type=Path, metavar="DIR", help="statistics of days that passed")
    docs_arguments(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    log.setLevel(logging.INFO)
    try:
        interval = Interval(milliseconds("begin", args.begin), milliseconds("end", args.end))
        declaration = load(args.source).declaration
        verdict = validate(Archive(args.archive), declaration, interval, args.samples, args.docs)
    except (ValueError, NotArchived) as e:
        log.error("%s", e)
        return 2
    return report(verdict, str(interval), {}, log, args.docs_at)


if __name__ == "__main__":
    sys.exit(main())
