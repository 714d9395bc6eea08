"""Settings: where they come from, which of them wins, and what a wrong one says."""

import dataclasses
import re

import pytest

from orchmgmt.app import create_app, store_of
from orchmgmt.settings import SettingError, Settings, describe
from orchmgmt.store import Store

pytestmark = pytest.mark.sqlite

DEFAULTS = {
    "DATABASE_URL": "sqlite:///orchmgmt.db",
    "HOST": "127.0.0.1",
    "PORT": 8441,
    "AUTHENTICATION_POLICY": "declared",
    "MANAGEMENT_POLICY": "sysop-only",
    "MANAGEMENT_WHITELIST": (),
    "NORMALIZATION_MODE": "extended",
    "MAX_PAGE_SIZE": 1000,
    "MAX_BODY_BYTES": 4 * 1024 * 1024,
    "OMIT_EMPTY": False,
    "HISTORY_MAX_AGE_DAYS": 15,
    "CLEANER_INTERVAL_SECONDS": 30,
    "UNIX_SOCKET": "",
    "SYSTEM_NAME": "OrchestrationManagement",
    "SYSTEM_PASSWORD": "",
    "IDENTITY_CACHE_SECONDS": 10,
    "CONNECT_TIMEOUT_SECONDS": 2,
    "READ_TIMEOUT_SECONDS": 5,
    "CLIENT_CERTIFICATE_HEADER": "X-Client-Certificate",
    "TRUSTED_PROXIES": ("127.0.0.0/8", "::1"),
    "LOG_LEVEL": "INFO",
}

# For each setting: what the environment, a mapping and the command line may hold, and what it is.
RIGHT = [
    ("DATABASE_URL", "sqlite:////var/lib/locks.db", "sqlite:////var/lib/locks.db"),
    ("DATABASE_TIMEOUT_SECONDS", "0.5", 0.5),
    ("DATABASE_TIMEOUT_SECONDS", "0", 0),
    ("HOST", " ::1 ", "::1"),
    ("PORT", "0", 0),
    ("PORT", "65535", 65535),
    ("THREADS", "256", 256),
    ("UNIX_SOCKET", "/run/orchmgmt/http.sock", "/run/orchmgmt/http.sock"),
    ("UNIX_SOCKET", "", ""),
    ("AUTHENTICATION_POLICY", "declared", "declared"),
    ("AUTHENTICATION_POLICY", "outsourced", "outsourced"),
    ("AUTHENTICATION_POLICY", "certificate", "certificate"),
    ("MANAGEMENT_POLICY", "authorization", "authorization"),
    ("SYSTEM_NAME", "Other", "Other"),
    ("SYSTEM_PASSWORD", "a b", "a b"),
    ("IDENTITY_CACHE_SECONDS", "0", 0),
    ("CONNECT_TIMEOUT_SECONDS", "0.5", 0.5),
    ("READ_TIMEOUT_SECONDS", "30", 30),
    ("TRUSTED_PROXIES", "10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
    ("MANAGEMENT_POLICY", "whitelist", "whitelist"),
    ("MANAGEMENT_WHITELIST", "Alice, bob-smith ,", ("Alice", "bob-smith")),
    ("MANAGEMENT_WHITELIST", "", ()),
    ("NORMALIZATION_MODE", "simple", "simple"),
    ("MAX_PAGE_SIZE", "1", 1),
    ("MAX_BODY_BYTES", "1024", 1024),
    ("OMIT_EMPTY", "true", True),
    ("OMIT_EMPTY", "Yes", True),
    ("OMIT_EMPTY", "1", True),
    ("OMIT_EMPTY", "off", False),
    ("HISTORY_MAX_AGE_DAYS", "0.5", 0.5),
    ("CLEANER_INTERVAL_SECONDS", "3600", 3600),
    ("LOG_LEVEL", "DEBUG", "DEBUG"),
]

# For each way of being wrong: the setting, its value, and what the line must say.
WRONG = [
    ("DATABASE_URL", "sqlite:///", "sqlite:///FILE"),
    ("DATABASE_URL", "postgres://db/locks", "begins with sqlite:/// or postgresql://"),
    ("DATABASE_URL", "mysql://me:s3cret@db/locks", "mysql://me:***@db/locks"),
    ("DATABASE_URL", "orchmgmt.db", "begins with sqlite:///"),
    ("DATABASE_URL", "sqlite://orchmgmt.db", "sqlite:///FILE"),
    ("DATABASE_TIMEOUT_SECONDS", "-1", "a number from 0 to 3600"),
    ("PORT", "http", "a whole number from 0 to 65535"),
    ("PORT", "65536", "a whole number from 0 to 65535"),
    ("PORT", "80.5", "a whole number from 0 to 65535"),
    ("PORT", "tcp://10.0.0.1:8441", "a whole number from 0 to 65535"),
    ("THREADS", "-1", "a whole number from 0 to 256"),
    ("AUTHENTICATION_POLICY", "none", "one of declared, outsourced, certificate"),
    ("MANAGEMENT_POLICY", "everyone", "one of sysop-only, whitelist, authorization"),
    ("SYSTEM_NAME", "b@b", "naming convention: B@b"),
    ("TRUSTED_PROXIES", "10.0.0.0/33", "TRUSTED_PROXIES: '10.0.0.0/33'"),
    ("MANAGEMENT_WHITELIST", "Alice,b@b", "naming convention: B@b"),
    ("MANAGEMENT_WHITELIST", "Alice, ,Bob", "a list separated by commas"),
    ("NORMALIZATION_MODE", "extensive", "one of extended, simple"),
    ("MAX_PAGE_SIZE", "0", "a whole number from 1 to"),
    ("MAX_BODY_BYTES", "4MB", "a whole number from 1 to"),
    ("OMIT_EMPTY", "maybe", "true or false"),
    ("HISTORY_MAX_AGE_DAYS", "nan", "a number from 0 to"),
    ("CLEANER_INTERVAL_SECONDS", "0", "a number from 0.05 to"),
    ("LOG_LEVEL", "chatty", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
]


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items(), ids=DEFAULTS)
def test_default(name, value):
    assert getattr(Settings.read(), name.lower()) == value


def test_table_describes_every_setting_with_a_default_that_reads_back():
    rows = describe()
    assert [row.name for row in rows] == [
        f"ORCHMGMT_{field.name.upper()}" for field in dataclasses.fields(Settings)
    ]
    assert all(row.help and row.type for row in rows)
    assert Settings.read({row.name: row.default for row in rows}) == Settings.read()


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_environment_and_mapping_read_the_same_text(monkeypatch, name, text, value):
    assert getattr(Settings.read({name: text}), name.lower()) == value
    monkeypatch.setenv(f"ORCHMGMT_{name}", text)
    assert getattr(Settings.read(), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", 0),
        ("OMIT_EMPTY", True),
        ("MANAGEMENT_WHITELIST", ("Alice", "Bob")),
        ("HISTORY_MAX_AGE_DAYS", 0.5),
        ("CLEANER_INTERVAL_SECONDS", 5),
    ],
)
def test_mapping_takes_values_of_the_settings_type(name, value):
    assert getattr(Settings.read({name: value}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", True),
        ("PORT", 1.5),
        ("THREADS", [4]),
        ("OMIT_EMPTY", 1),
        ("HOST", 127),
        ("HISTORY_MAX_AGE_DAYS", False),
        ("HISTORY_MAX_AGE_DAYS", float("inf")),
        ("MANAGEMENT_WHITELIST", 5),
        ("MANAGEMENT_WHITELIST", ["Alice", 5]),
        ("LOG_LEVEL", 10),
    ],
)
def test_mapping_refuses_values_of_another_type(name, value):
    with pytest.raises(SettingError, match=f"^ORCHMGMT_{name} must be "):
        Settings.read({name: value})


def test_mapping_wins_over_environment(monkeypatch):
    monkeypatch.setenv("ORCHMGMT_PORT", "1111")
    monkeypatch.setenv("ORCHMGMT_THREADS", "11")
    monkeypatch.setenv("ORCHMGMT_HOST", "::1")
    settings = Settings.read({"PORT": 2222, "THREADS": 22, "HOST": None}, {"port": "3333"})
    assert (settings.port, settings.threads, settings.host) == (3333, 22, "::1")


def test_mapping_takes_names_with_and_without_the_prefix():
    assert Settings.read({"ORCHMGMT_PORT": 1, "THREADS": 2}) == Settings.read(
        {"PORT": 1, "ORCHMGMT_THREADS": 2}
    )


@pytest.mark.parametrize("name", ["PORTS", "ORCHMGMT_PROT", "", "ORCHMGMT_"])
def test_mapping_refuses_unknown_names(name):
    with pytest.raises(SettingError, match=f"^{name} is not a setting( .did you mean port.)?"):
        Settings.read({name: "1"})


def test_create_app_takes_a_mapping_over_the_environment(monkeypatch):
    monkeypatch.setenv("ORCHMGMT_MAX_BODY_BYTES", "10")
    monkeypatch.setenv("ORCHMGMT_DATABASE_URL", "sqlite:///:memory:")
    for mapping, limit in (({"MAX_BODY_BYTES": 20}, 20), ({}, 10)):
        app = create_app(mapping)
        assert store_of(app).settings.max_body_bytes == limit
        store_of(app).close()


def test_create_app_refuses_a_wrong_setting():
    with pytest.raises(SettingError, match="ORCHMGMT_THREADS must be"):
        create_app({"DATABASE_URL": "sqlite:///:memory:", "THREADS": -1})


def test_command_line_wins_over_environment(serve):
    process = serve("--max-page-size", "3", env={"ORCHMGMT_MAX_PAGE_SIZE": "2"})
    answer = process.locks(pagination={"page": 0, "size": 4})
    assert answer.error == "The page size cannot be larger than 3"
    assert process.stop() == 0


def test_environment_holds_for_commands(serve):
    process = serve(env={"ORCHMGMT_MAX_PAGE_SIZE": "2"})
    answer = process.locks(pagination={"page": 0, "size": 3})
    assert answer.error == "The page size cannot be larger than 2"


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_wrong_value_ends_a_command_with_one_clear_line(run, name, value, says):
    ended = run("serve", env={"ORCHMGMT_PORT": "0", f"ORCHMGMT_{name}": value})
    assert ended.returncode == 2
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert says in lines[0]


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["serve"], "--port", "x"),
        (["demo"], "--threads", "257"),
        (["lock", "export"], "--omit-empty", "perhaps"),
        (["lock", "import", "-"], "--normalization-mode", "none"),
        (["history", "export"], "--database-url", "mysql://x"),
    ],
)
def test_wrong_option_ends_every_command_with_one_clear_line(run, command, option, value):
    ended = run(*command, option, value, input="")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert value in ended.stderr


def test_wrong_environment_is_refused_even_where_the_command_line_is_right(run):
    ended = run("lock", "export", "--log-level", "INFO", env={"ORCHMGMT_LOG_LEVEL": "loud"})
    assert ended.returncode == 2
    assert "ORCHMGMT_LOG_LEVEL" in ended.stderr


MISSPELT = "ORCHMGMT_AUTHENTICATON_POLICY"
MEANT = f"{MISSPELT} is not a setting (did you mean ORCHMGMT_AUTHENTICATION_POLICY?)"


@pytest.mark.parametrize(
    "command",
    [
        ("serve",),
        ("demo", "--port", "0"),
        ("lock", "import", "-"),
        ("history", "export"),
        ("lock", "list"),
        ("clean",),
        ("upgrade", "--check"),
        ("backup", "copy.db"),
        ("mirror", "http://127.0.0.1:1"),
        ("config",),
        ("openapi",),
    ],
    ids=" ".join,
)
def test_a_misspelt_variable_ends_each_command_in_one_line(run, tmp_path, command):
    ended = run(*command, env={MISSPELT: "certificate"}, input="")
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"Error: {MEANT}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_variable_stops_an_application(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MISSPELT, " ")
    for make in (create_app, lambda: create_app({"PORT": 1}), Store):
        with pytest.raises(SettingError, match=f"^{re.escape(MEANT)}$"):
            make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["declared", "certificate"])
def test_a_certificate_that_the_policy_ignores_is_worth_one_warning(start, caplog, policy):
    service = start(AUTHENTICATION_POLICY=policy, CLOUD="Testcloud.Company")
    for _ in range(3):
        service.post("/lock/query", {}, **{"X-Client-Certificate": "x"})
    warnings = [it.message for it in caplog.records if it.levelname == "WARNING"]
    expected = (
        "a request came with a client certificate, in X-Client-Certificate, and the authentication "
        "policy ignores it: is ORCHMGMT_AUTHENTICATION_POLICY=certificate missing?"
    )
    assert warnings == ([expected] if policy == "declared" else [])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ORCHMGMT_port", r"is not a setting \(did you mean ORCHMGMT_PORT\?\)$"),
        # Kubernetes gives every container such a variable for a service called orchmgmt.
        ("ORCHMGMT_PORT_8441_TCP_PROTO", "is not a setting"),
        ("ORCHMGMT_", "is not a setting"),
    ],
)
def test_a_variable_with_the_prefix_is_a_setting_or_refused(name, says):
    environ = {"PATH": "", "OTHER_PORT": "x", "orchmgmt_port": "y", "ORCHMGMT_PORT": "1"}
    assert Settings.read(environ=environ).port == 1
    with pytest.raises(SettingError, match=f"^{name} {says}"):
        Settings.read(environ={**environ, name: "1"})


@pytest.mark.parametrize(
    ("settings", "requester", "status"),
    [
        ({"MANAGEMENT_POLICY": "whitelist", "MANAGEMENT_WHITELIST": "plant-manager"}, None, 200),
        ({"MANAGEMENT_POLICY": "whitelist", "MANAGEMENT_WHITELIST": "Other"}, None, 403),
        ({"MANAGEMENT_POLICY": "whitelist", "MANAGEMENT_WHITELIST": ""}, None, 403),
        ({"MANAGEMENT_POLICY": "whitelist", "MANAGEMENT_WHITELIST": ""}, "Sysop", 200),
        ({"MANAGEMENT_WHITELIST": "PlantManager"}, None, 403),
    ],
)
def test_whitelist_names_are_normalised_and_count_only_under_their_policy(
    start, settings, requester, status
):
    service = start(**settings)
    header = f"Bearer SYSTEM//{requester or 'PlantManager'}"
    assert service.post("/lock/query", {}, Authorization=header).status == status


def test_whitelist_names_are_not_completed_in_simple_mode():
    settings = {"MANAGEMENT_WHITELIST": "plant-manager", "NORMALIZATION_MODE": "simple"}
    with pytest.raises(SettingError, match="naming convention: plant-manager"):
        Settings.read(settings)


def test_a_blank_variable_is_as_good_as_none():
    environ = {f"ORCHMGMT_{name}": " " for name in ("PORT", "DATABASE_URL", "OMIT_EMPTY")}
    assert Settings.read(environ=environ) == Settings()


def test_a_choice_may_be_written_in_any_letter_case():
    assert Settings.read({"LOG_LEVEL": "debug"}, environ={}).log_level == "DEBUG"
