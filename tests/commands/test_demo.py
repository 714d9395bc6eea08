"""`orchmgmt demo`: what an audience sees, through the doors that everybody has."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pages import ROOT
from support import Process, until

from orchmgmt.commands import demo as cli
from orchmgmt.settings import describe

pytestmark = pytest.mark.sqlite


def parsed(moment: str) -> datetime:
    return datetime.fromisoformat(moment.replace("Z", "+00:00"))


def test_it_says_where_to_look_and_nothing_else(
    serve: Callable[..., Process], tmp_path: Any
) -> None:
    demo = serve(command="demo")  # whose one line is `Open <address>/`
    assert b"orchmgmt" in demo.send("GET", "/ui/").body
    assert demo.send("GET", "/").headers["Location"] == "ui/"
    assert demo.stop() == 0
    assert demo.process.stdout is not None
    assert demo.process.stdout.read() == ""
    assert (tmp_path / "server-0.log").read_text() == ""


def test_the_times_of_the_example_are_the_present(serve: Callable[..., Process]) -> None:
    demo = serve("--rate", "0.1", command="demo")
    jobs = demo.jobs().entries
    now = datetime.now(UTC)
    assert all(timedelta() < now - parsed(it["createdAt"]) < timedelta(hours=1) for it in jobs)
    assert len(jobs) in (400, 401)  # the factory begins at once
    for entry in jobs:
        assert entry["createdAt"] <= (entry["startedAt"] or "9") <= (entry["finishedAt"] or "9")
    locks = demo.locks().entries
    assert all(parsed(it["expiresAt"]) - now < timedelta(minutes=10) for it in locks)
    assert len(locks) > 30


def test_the_factory_works_collides_fails_and_releases(serve: Callable[..., Process]) -> None:
    demo = serve("--rate", "1200", "--speed", "20", command="demo")
    known = {it["id"] for it in demo.jobs(pagination={"page": 0, "size": 1000}).entries}

    def done(jobs: list[dict[str, Any]]) -> bool:
        said = " ".join(it["message"] for it in jobs if it["status"] == "ERROR")
        chosen = any("was chosen" in it["message"] for it in jobs if it["status"] == "DONE")
        return chosen and "Every matching provider is locked" in said and "ran out" in said

    until(lambda: done([it for it in demo.jobs().entries if it["id"] not in known]))
    newest = max(it["id"] for it in demo.locks().entries)
    assert newest > 42
    until(lambda: any(it["temporary"] and it["id"] > 42 for it in demo.locks().entries))
    until(lambda: any(not it["temporary"] and it["id"] > 42 for it in demo.locks().entries))
    # A job that has ended holds nothing.
    ended = {it["id"] for it in demo.jobs(statuses=["DONE", "ERROR"]).entries}
    held = {it["orchestrationJobId"] for it in demo.locks().entries if it["temporary"]}
    assert len(ended) > 300
    assert not ended & held


def test_its_own_options_are_in_the_page() -> None:
    named = re.findall(r"^\| `(--\w+)` \|", (ROOT / "docs" / "page.md").read_text(), re.MULTILINE)
    options = [it.opts[0] for it in cli.demo.params]
    settings = {"--" + row.name.removeprefix("ORCHMGMT_").lower() for row in describe()}
    assert named == [
        it for it in options if it.replace("-", "_").replace("__", "--") not in settings
    ]


def test_still_it_is_the_example_as_it_is(serve: Callable[..., Process]) -> None:
    demo = serve("--still", command="demo")
    locks, jobs = demo.locks().json, demo.jobs().json
    assert {it["expiresAt"][:4] for it in locks["entries"]} == {"2099"}
    assert (locks["count"], jobs["count"]) == (42, 400)
    assert {it["createdAt"][:7] for it in jobs["entries"]} == {"2026-11"}


def test_it_goes_on_under_another_policy(
    serve: Callable[..., Process], cloud: Any, tmp_path: Any
) -> None:
    environ = {f"ORCHMGMT_{key}": value for key, value in cloud.settings.items()}
    environ["ORCHMGMT_AUTHENTICATION_POLICY"] = "outsourced"
    demo = serve("--rate", "1200", "--speed", "20", command="demo", env=environ)
    demo.headers = {"Authorization": f"Bearer IDENTITY-TOKEN//{cloud.token('Carol', True)}"}
    until(lambda: demo.jobs().json["count"] > 410)
    assert demo.stop() == 0
    assert "Traceback" not in (tmp_path / "server-0.log").read_text()
