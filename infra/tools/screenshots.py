"""Takes pictures of a running platform's pages with a headless chromium, by its DevTools protocol.

python -m infra.tools.screenshots --name demo          # after `minutehand pipeline`; writes docs/pictures/*.png
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import process
from infra.airflow.rest import Airflow
from infra.cli.command import settings_flags, settings_of
from infra.cli.pipeline import session
from infra.http_client import fetch
from infra.platform import Platform, PlatformError
from infra.settings import PROJECT, SettingError
from infra.supervise.processes import child

SIZE = (1400, 900)
TALL = (1400, 1300)
SETTLED_WITHIN_S = 90.0
COLOURS = 128  # of a picture: pages have few, and the docs' pictures must be small


class Browser:
    """One page of a headless chromium."""

    def __init__(self, port: int) -> None:
        from websockets.sync.client import connect

        pages = [t for t in json.loads(fetch(f"http://127.0.0.1:{port}/json/list")) if t["type"] == "page"]
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(pages[0]["webSocketDebuggerUrl"], max_size=None))
        self._count = 0
        self.call("Page.enable")

    def close(self) -> None:
        self._open.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            reply = json.loads(self._socket.recv(timeout=60))
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise PlatformError(f"chromium refuses {method}: {reply['error']['message']}")
                result: dict[str, Any] = reply["result"]
                return result

    def eval(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, url: str, shows: str) -> None:
        """Opens an address, and waits until the page's text matches `shows` and does not change for 3 s."""
        self.call("Page.navigate", url=url)
        deadline, last, since = time.monotonic() + SETTLED_WITHIN_S, None, time.monotonic()
        while True:
            text = self.eval("document.body ? document.body.innerText + document.body.innerHTML.length : ''") or ""
            if text != last:
                last, since = text, time.monotonic()
            if re.search(shows, text, re.S) and time.monotonic() - since > 3:
                return
            if time.monotonic() > deadline:
                raise PlatformError(f"{url} does not show {shows!r}; it shows: {text[:300]}")
            time.sleep(0.3)

    def size(self, wide: int, high: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=wide, height=high, deviceScaleFactor=1, mobile=False)

    def picture(self, path: Path) -> None:
        import io

        from PIL import Image

        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS)
        image.save(path, optimize=True)
        print(f"{path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path}: {path.stat().st_size} bytes")


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not binary:
        raise SettingError("there is no chromium on PATH; install it: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        words += [f"--window-size={SIZE[0]},{SIZE[1]}", "--hide-scrollbars", "--remote-debugging-port=0"]
        command = [binary, *words, f"--user-data-dir={profile}", "about:blank"]
        with child(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            port_file, deadline = Path(profile) / "DevToolsActivePort", time.monotonic() + 60
            while not port_file.is_file() or not port_file.read_text().strip():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PlatformError("chromium did not start")
                time.sleep(0.1)
            with contextlib.closing(Browser(int(port_file.read_text().splitlines()[0]))) as browser:
                browser.size(*SIZE)
                yield browser


def airflow_pages(browser: Browser, client: Airflow, to: Path) -> None:
    """The graph of the newest run of sample_examples, and of batch_warm_start."""
    browser.call("Network.setCookie", name="_token", value=client.token, url=client.url)
    for dag in ("sample_examples", "batch_warm_start"):
        runs = client.call(f"/api/v2/dags/{dag}/dagRuns?order_by=-run_after&limit=1&state=success")["dag_runs"]
        if not runs:
            raise PlatformError(f"{dag} has no run that succeeded: minutehand pipeline makes one")
        last = "sample" if dag == "sample_examples" else "promote"
        browser.open(f"{client.url}/dags/{dag}", dag)
        browser.eval("localStorage.setItem('default_dag_view', JSON.stringify('graph'))")
        run = urllib.parse.quote(runs[0]["dag_run_id"])
        browser.open(f"{client.url}/dags/{dag}/runs/{run}", rf"{dag}.*{last}")
        browser.picture(to / f"airflow-{dag.replace('_', '-')}.png")


def mlflow_pages(browser: Browser, url: str, to: Path) -> None:
    """The newest candidate's run, and its comparison with the run before."""
    api = f"{url}/api/2.0/mlflow"
    experiments = json.loads(fetch(f"{api}/experiments/search", {"max_results": 100}))["experiments"]
    query = {"experiment_ids": [e["experiment_id"] for e in experiments], "order_by": ["start_time DESC"]}
    runs = json.loads(fetch(f"{api}/runs/search", query))["runs"]
    if len(runs) < 2:
        raise PlatformError(
            f"MLflow has {len(runs)} runs, to compare it takes two: minutehand pipeline makes the second"
        )
    two = [run["info"] for run in runs[:2]]
    newest = two[0]
    page = f"{url}/?workflowType=machine_learning#"  # not the GenAI pages
    browser.open(f"{page}/experiments/{newest['experiment_id']}", "minutehand")
    browser.eval("localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false')")
    browser.open("about:blank", "")
    browser.size(*TALL)
    shows = re.escape(newest["run_name"]) + r".*Metrics \("
    browser.open(f"{page}/experiments/{newest['experiment_id']}/runs/{newest['run_id']}", shows)
    browser.picture(to / "mlflow-run.png")
    pair = {"runs": [r["run_id"] for r in two], "experiments": sorted({r["experiment_id"] for r in two})}
    words = urllib.parse.urlencode({name: json.dumps(value) for name, value in pair.items()})
    browser.open(f"{page}/compare-runs?{words}", "Run ID.*" + two[1]["run_id"])
    browser.picture(to / "mlflow-compare.png")


def data_docs_page(browser: Browser, url: str, folder: Path, to: Path) -> None:
    """The newest verdict on an interval's examples. (Without the internet, Data Docs have no styles.)"""
    pages = sorted(folder.rglob("validations/examples/**/*.html"), key=lambda p: p.stat().st_mtime)
    if not pages:
        raise PlatformError(f"there are no Data Docs in {folder}: minutehand pipeline makes them")
    browser.size(*TALL)
    browser.open(f"{url}/{urllib.parse.quote(str(pages[-1].relative_to(folder)))}", "Evaluated Expectations")
    browser.eval("[...document.querySelectorAll('h5')].find(e => e.innerText.startsWith('Overview')).scrollIntoView()")
    browser.picture(to / "data-docs.png")


def take(args: argparse.Namespace) -> None:
    platform = Platform(settings_of(args))
    platform.require_running()
    args.to.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        airflow_pages(browser, session(platform), args.to)
        mlflow_pages(browser, platform.address("mlflow"), args.to)
        data_docs_page(browser, platform.address("data-docs"), platform.layout.data_docs, args.to)


def main(argv: list[str] | None = None) -> int:
    parser = process.Arguments("infra.tools.screenshots", __doc__ or "", parents=[settings_flags()])
    parser.add_argument("--to", type=Path, default=PROJECT / "docs/pictures", help="(default: docs/pictures)")
    args = parser.parse_args(argv)
    return process.run(lambda: take(args))


if __name__ == "__main__":
    sys.exit(main())
