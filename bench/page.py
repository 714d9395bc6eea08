"""Measure the page in a browser, on 10,000 locks and 100,000 jobs.

For each view: from the answer's last byte until it has been painted, and the longest that refreshes
and the ticks of the clock keep the main thread busy. Needs chromium and chromium-driver.

Usage: page.py [--seconds N]
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from run import running

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Browser
from run import ours

from orchmgmt.models import NewLock
from orchmgmt.settings import Settings
from orchmgmt.store import Store
from orchmgmt.values import write_instant

LOCKS, JOBS = 10_000, 100_000
VIEWS = {
    "locks": "view=locks",
    "locks, 200 rows": "view=locks&size=200",
    "timeline": "view=timeline",
    "timeline, 100 rows": "view=timeline&size=100",
    "history": "view=history",
    "history, 200 rows": "view=history&size=200",
}

# Frames whose work takes 50 ms and more, and nothing below, are told of by the browser.
WATCH = """
window.longest = 0; window.tasks = 0;
new PerformanceObserver((list) => {
  for (const it of list.getEntries()) {
    window.longest = Math.max(window.longest, it.duration);
    window.tasks += 1;
  }
}).observe({type: 'long-animation-frame'});
"""
FIRST = """
const answers = performance.getEntriesByType('resource')
  .filter((it) => it.name.includes('/query')).map((it) => it.responseEnd);
const shown = performance.getEntriesByName('first-view')[0].startTime;
return shown - Math.max(...answers.filter((it) => it <= shown));
"""


def fill(path: Path) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    with Store(Settings(database_url=f"sqlite:///{path}")) as store:
        statuses = ("DONE", "DONE", "DONE", "ERROR")
        jobs = [
            {
                "id": f"00000000-0000-4000-8000-{number:012x}",
                "status": statuses[number % 4],
                "type": ("PULL", "PUSH")[number % 2],
                "requester_system": f"Requester{number % 100}",
                "target_system": f"Target{number % 100}",
                "service_definition": f"service{number % 20}",
                "subscription_id": "",
                "message": "No provider is available" if number % 4 == 3 else "",
                "created_at": write_instant(now - timedelta(seconds=number)),
                "started_at": write_instant(now - timedelta(seconds=number - 2)),
                "finished_at": write_instant(now - timedelta(seconds=number - number % 40)),
            }
            for number in range(50, JOBS + 50)
        ]
        store.database.write(store.job_table.put, jobs)
        for first in range(0, LOCKS, 1000):
            store.lock_table.create(
                [
                    NewLock("", f"Provider{number:05}|service{number % 20}|1.0.0",
                            f"Owner{number % 1000}",
                            write_instant(now + timedelta(seconds=60 + number)))
                    for number in range(first, first + 1000)
                ]
            )  # fmt: skip


def main(seconds: float) -> None:
    browser = Browser()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "page.db")
        fill(path)
        with running([*ours(path), "--ui", "true"]) as service:
            browser.reset(service.url)
            print("| view | first view after the answer | longest frame of refreshes |")
            print("| --- | --- | --- |")
            for name, query in VIEWS.items():
                browser.open(query)
                mark = "return performance.getEntriesByName('first-view').length"
                browser.until(lambda mark=mark: browser.run(mark))
                first = browser.run(FIRST)
                time.sleep(1)
                browser.run(WATCH)
                time.sleep(seconds)
                longest = browser.run("return window.longest")
                shown = f"{longest:.0f} ms" if longest else "none of 50 ms"
                print(f"| {name} | {first:.0f} ms | {shown} |")
    browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each view is watched")
    main(parser.parse_args().seconds)
