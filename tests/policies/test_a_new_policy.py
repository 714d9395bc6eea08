"""A policy takes a class and a line: all that others must know of it, the class says."""

from pathlib import Path

import pytest
from support import lock

from orchmgmt import policies
from orchmgmt.app import create_app, service_of
from orchmgmt.settings import AUTHENTICATION_POLICIES, Part, SettingError, Settings
from orchmgmt.testing import Service

pytestmark = pytest.mark.sqlite

MINE = """
from orchmgmt.errors import Unidentified
from orchmgmt.policies import AuthenticationPolicy, Requester


class Mine(AuthenticationPolicy):
    def __init__(self, settings):
        pass

    def identify(self, evidence):
        if evidence.headers.get("X-Mine") != "secret":
            raise Unidentified("Not mine")
        return Requester("Me", operator=True)
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(policies, "__path__", [*policies.__path__, str(tmp_path)])
    monkeypatch.setitem(AUTHENTICATION_POLICIES, "mine", Part("policies.mine:Mine"))
    return Settings(
        database_url="sqlite:///:memory:",
        authentication_policy="mine",
        openapi=True,
        ui=True,
        metrics=True,
    )


def test_the_service_works_with_it_whatever_is_switched_on(settings: Settings) -> None:
    app = create_app(settings)
    with service_of(app).store:
        client = app.test_client()
        create = "/serviceorchestration/orchestration/mgmt/lock/create"
        payload = {"locks": [lock("A|b|1.0.0")]}
        assert client.post(create, json=payload).json["errorMessage"] == "Not mine"
        assert client.post(create, json=payload, headers={"X-Mine": "secret"}).status_code == 201
        identity = client.get("/openapi.json").json["components"]["securitySchemes"]["identity"]
        assert identity == {"type": "http", "scheme": "bearer"}
        who = client.get("/ui/who.json", headers={"X-Mine": "secret"}).json
        assert who == {"name": "Me", "operator": True}


def test_what_asks_other_systems_says_that_it_cannot_prove_who_it_is(settings: Settings) -> None:
    with pytest.raises(SettingError, match="the policy `mine` does not say how this system proves"):
        create_app(
            Settings(
                database_url="sqlite:///:memory:",
                authentication_policy="mine",
                service_registry_url="http://127.0.0.1:1/serviceregistry",
            )
        )


def test_the_harness_says_that_it_does_not_know_its_headers(settings: Settings) -> None:
    with Service() as service:
        service.settings = settings
        with pytest.raises(SettingError, match="`mine`"):
            _ = service.headers
