"""`orchmgmt.testing`: TLS, mutual TLS, and certificates that a test asks for."""

import socket
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import MANAGEMENT

from orchmgmt.client import Refused, Unavailable
from orchmgmt.settings import SettingError
from orchmgmt.testing import Service

pytestmark = pytest.mark.sqlite

QUERY = f"{MANAGEMENT}/lock/query"


@pytest.fixture(scope="module")
def over_tls():
    with Service(tls=True) as service:
        yield service


@pytest.fixture(scope="module")
def mutual():
    with Service(
        tls=True,
        authentication_policy="certificate",
        cloud="test.company",
        management_policy="authorization",
    ) as service:
        yield service


def refusal(service, certificate):
    with service.client(certificate=certificate, retries=0) as client:
        try:
            return list(client.locks())
        except Refused as error:
            return error.status
        except Unavailable as error:
            return str(error)


def connect(service, context, name="127.0.0.1"):
    plain = socket.create_connection(("127.0.0.1", urlsplit(service.url).port), 60)
    return context.wrap_socket(plain, server_hostname=name)


def send(connection, *headers):
    lines = [f"POST {QUERY} HTTP/1.1", "Host: here", "Content-Length: 2", *headers]
    connection.sendall("\r\n".join([*lines, "", "{}"]).encode())


def test_only_clients_that_trust_the_authority_of_this_run_connect(over_tls):
    assert over_tls.url.startswith("https://127.0.0.1:")
    for name in ("127.0.0.1", "localhost"):
        connect(over_tls, over_tls.ssl_context(), name).close()
    connect(over_tls, ssl.create_default_context(cafile=over_tls.ca_file)).close()
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(over_tls, ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(over_tls, over_tls.ssl_context(), "elsewhere")


def test_faults_happen_over_tls(over_tls):
    over_tls.reset()
    with over_tls.client(retries=0) as client:
        for drop in ("before", "after", "middle"):
            over_tls.faults.next(drop=drop)
            with pytest.raises(Unavailable):
                list(client.locks())
            assert over_tls.requests[-1].delivered is False
        over_tls.faults.next([{"trickle": 0.0001}, {"delay": 0.01}, {"delay_before": 0.01}])
        for _ in range(3):
            assert list(client.locks()) == []
            assert over_tls.requests[-1].delivered
        over_tls.down()
        with pytest.raises(Unavailable):
            list(client.locks())
        over_tls.up()
        assert list(client.locks()) == []
    over_tls.faults.assert_all_used()


@pytest.mark.parametrize("drop", ["reset", "before"])
def test_a_reset_is_one_on_the_wire(over_tls, drop):
    over_tls.reset()
    over_tls.faults.next(drop=drop)
    with connect(over_tls, over_tls.ssl_context()) as connection:
        send(connection)
        ended = "end"
        try:  # below TLS: Python's ssl makes one error of both
            while socket.socket.recv(connection, 4096):
                pass
        except ConnectionResetError:
            ended = "reset"
    assert ended == {"reset": "reset", "before": "end"}[drop]


def test_a_client_that_never_shakes_hands_holds_nobody_up():
    with Service(tls=True) as service:
        silent = socket.create_connection(("127.0.0.1", urlsplit(service.url).port), 60)
        with silent, service.client() as client:
            assert list(client.locks()) == []
            service.stop()
            assert silent.recv(1) == b""


def test_the_client_certificate_says_who_asks(mutual):
    mutual.reset()
    for operator, answer in ((True, []), (False, 403)):
        assert refusal(mutual, mutual.certificate("RoomClimate", operator=operator)) == answer
        assert mutual.requests[-1].requester == "RoomClimate"
    mutual.authorization.grant("RoomClimate", "query")
    assert refusal(mutual, mutual.certificate("RoomClimate")) == []
    with mutual.client() as client:
        assert list(client.locks()) == []
    assert mutual.requests[-1].requester == "Sysop"


def test_wrong_certificates_can_be_asked_for(mutual):
    def shown(**wrong):
        return refusal(mutual, mutual.certificate("RoomClimate", operator=True, **wrong))

    assert shown(cloud="other.company") == 403
    assert shown(profile="de") == 403
    assert "expired" in shown(expired=True)
    assert "unknown ca" in shown(foreign=True)


@pytest.mark.parametrize("name", ["X-Client-Certificate", "x-client-certificate"])
def test_a_client_cannot_send_the_header_of_the_certificate_itself(mutual, name):
    header = mutual.headers["X-Client-Certificate"]
    with connect(mutual, mutual.ssl_context()) as connection:
        send(connection, f"{name}: {header}", "Content-Type: application/json")
        assert b" 401 " in connection.recv(100)
    assert "X-Client-Certificate" not in mutual.requests[-1].headers


def test_keys_are_for_their_owner_alone(mutual):
    folder = Path(mutual.certificate("RoomClimate").key).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_certificate_file_that_is_not_there_is_an_error(tmp_path):
    for setting in ("certificate_file", "key_file", "ca_file"):
        with pytest.raises(SettingError, match=f"{setting.upper()} cannot be used: No such file"):
            Service(**{setting: str(tmp_path / "none.pem")}).start()
