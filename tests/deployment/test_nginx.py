"""Behind the real nginx, on the configurations in `deploy/nginx`."""

import http.client
import json
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from certificates import CLOUD, DAY, DOMAIN, NOW, Authority, Issued, subject
from nginx import Nginx
from support import MANAGEMENT, OPERATOR, Answer, Client, Process, lock, on_waitress
from wire import raw

pytestmark = pytest.mark.sqlite

ECHO = "/serviceorchestration/monitor/echo"
QUERY = f"{MANAGEMENT}/lock/query"
CREATE = f"{MANAGEMENT}/lock/create"
LIMIT = 4 * 1024 * 1024


@contextmanager
def running(
    folder: Path, name: str, backend: str, authority: Authority, **replace: str
) -> Iterator[Nginx]:
    """nginx on one of the configurations, before the service (or what is in its place)."""
    files = {
        "/etc/orchmgmt/server.pem": authority.server_file(),
        "/etc/orchmgmt/server.key": authority.server_file(),
        "/etc/orchmgmt/cloud-ca.pem": authority.ca_file,
        "/etc/orchmgmt/cloud-crl.pem": str(authority.folder / "authority-crl.pem"),
        "127.0.0.1:8441": urlsplit(backend).netloc,
    }
    files["/etc/orchmgmt/server.key"] = files["/etc/orchmgmt/server.pem"]
    nginx = Nginx(folder / "nginx", name, {**files, **replace})
    try:
        yield nginx
    finally:
        nginx.stop()


def send(
    nginx: Nginx,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    connection = (
        http.client.HTTPSConnection("127.0.0.1", nginx.port, timeout=30, context=tls)
        if tls
        else http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=30)
    )
    with closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        origin = f"{method} {path.partition('?')[0]}"
        return Answer(response.status, response.headers, response.read(), origin)


# generic_http.


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("http")
    with (
        on_waitress(DATABASE_URL=f"sqlite:///{folder}/orchmgmt.db") as service,
        running(folder, "generic_http.conf", service.url, authority) as nginx,
    ):
        yield nginx


def test_operations_pass_over_http(plain: Nginx) -> None:
    sysop = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    body = json.dumps({"locks": [lock("Http|kelvinInfo|1.0.0", "Http")]}).encode()
    assert send(plain, "POST", CREATE, sysop, body).status == 201
    found = send(plain, "POST", QUERY, sysop, b'{"owners": ["Http"]}')
    assert [it["owner"] for it in found.entries] == ["Http"]
    path = f"{MANAGEMENT}/lock/remove/Http"
    query = "?instanceIds=Http%7CkelvinInfo%7C1.0.0"
    answer = send(plain, "DELETE", path + query, {"Authorization": OPERATOR})
    assert (answer.status, answer.body) == (200, b"")
    assert send(plain, "GET", ECHO, sysop).body == b"Got it!"


def test_it_is_reached_over_ipv6_too(plain: Nginx) -> None:
    connection = http.client.HTTPConnection("::1", plain.port, timeout=30)
    with closing(connection):
        connection.request("GET", ECHO, headers={"Authorization": OPERATOR})
        assert connection.getresponse().status == 200


def test_errors_of_the_service_pass_as_they_are(plain: Nginx) -> None:
    sysop = {"Authorization": OPERATOR}
    assert send(plain, "POST", QUERY).error == "No authorization header has been provided"
    assert send(plain, "GET", QUERY, sysop).status == 405
    assert send(plain, "GET", QUERY, sysop).headers["Allow"]
    assert send(plain, "GET", "/serviceorchestration/x?y", sysop).error == "There is no such path"
    answer = send(plain, "DELETE", f"{MANAGEMENT}/lock/remove/a%2Fb", sysop)
    assert (answer.status, answer.error) == (404, "There is no such path")


@pytest.mark.parametrize("extra", [0, 1])
def test_the_body_limit_is_the_services(plain: Nginx, extra: int) -> None:
    sysop = {"Authorization": OPERATOR, "Content-Type": "application/json"}
    body = b"{}".ljust(LIMIT + extra)
    answer = send(plain, "POST", QUERY, sysop, body)
    if extra:
        assert answer.status == 413
        assert answer.error == f"The request body is larger than {LIMIT} bytes"
    else:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/index.html", 404),
        ("POST", "/health?x=y", 404),
        ("DELETE", "/serviceorchestration", 404),
        ("GET", "/orchmgmt-error", 404),
        ("TRACE", ECHO, 405),
    ],
)
def test_errors_of_nginx_are_error_responses(
    plain: Nginx, method: str, path: str, status: int
) -> None:
    answer = send(plain, method, path)
    assert answer.status == status
    assert answer.error


@pytest.mark.parametrize(
    ("request_line", "origin"),
    [
        (b"GARBAGE", ""),
        (b"GET / HTTP/9.9", "GET /"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b", "GET /a"),
        (b"POST /a?b HTTP/1.1", "POST /a"),  # without a Host
        (b"GET /%zz HTTP/1.1\r\nHost: a", "GET /%zz"),
        (b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: x", "POST /a"),
        (b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x", "POST /a"),
        (b"GET /a HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000, "GET /a"),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: a", None),
        (b'GET /a"b\\c HTTP/1.1\r\nHost: a\r\nConnection: close', "GET /a"),
        (b"GET /a\xff HTTP/1.1\r\nHost: a\r\nConnection: close", "GET /a"),
    ],
)
def test_what_nginx_cannot_read_is_an_error_response_too(
    plain: Nginx, request_line: bytes, origin: str | None
) -> None:
    answer = raw(Client(f"http://127.0.0.1:{plain.port}"), request_line + b"\r\n\r\n")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json["errorCode"] == answer.status >= 400
    assert list(answer.json) == ["errorMessage", "errorCode", "exceptionType", "origin"]
    if origin is not None:
        assert answer.json["origin"] == origin


# What reaches the service.


class Recorder(ThreadingHTTPServer):
    """In the place of the service: keeps what it gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recorded)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.got: list[http.client.HTTPMessage] = []
        self.connections = 0
        self.began = threading.Event()
        self.open = threading.Event()
        self.open.set()


class _Recorded(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *args: Any) -> None:
        pass

    def _any(self) -> None:
        self.server.began.set()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append(self.headers)
        self.server.open.wait(30)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = _any  # noqa: N815


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    thread = threading.Thread(target=recorder.serve_forever, args=(0.02,))
    thread.start()
    yield recorder
    recorder.open.set()
    recorder.shutdown()
    recorder.server_close()
    thread.join()


# What a client may send that only the proxy has a right to say.
SPOOFED = {
    "X-Client-Certificate": "spoofed",
    "x-client-certificate": "spoofed",
    "X_Client_Certificate": "spoofed",
    "Client-Cert": "spoofed",
    "Client-Cert-Chain": "spoofed",
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "spoofed",
    "X-Forwarded-Host": "spoofed",
    "X-Forwarded-Port": "1",
    "X-Forwarded-By": "spoofed",
    "Forwarded": "for=192.0.2.66",
    "X-Real-IP": "192.0.2.66",
}


def test_a_clients_own_copies_of_the_proxys_headers_are_stripped(
    recorder: Recorder, tmp_path: Path, authority: Authority
) -> None:
    with running(tmp_path, "generic_http.conf", recorder.url, authority) as nginx:
        assert send(nginx, "GET", ECHO, {**SPOOFED, "Authorization": "kept"}).status == 200
    (headers,) = recorder.got
    assert headers["Authorization"] == "kept"
    assert headers.get_all("X-Forwarded-For") == ["127.0.0.1"]
    assert headers.get_all("X-Forwarded-Proto") == ["http"]
    text = str(headers)
    assert "spoofed" not in text
    assert "192.0.2.66" not in text
    assert "client-cert" not in text.lower()


def test_connections_to_the_service_are_kept(
    recorder: Recorder, tmp_path: Path, authority: Authority
) -> None:
    with running(tmp_path, "generic_http.conf", recorder.url, authority) as nginx:
        for _ in range(5):
            assert send(nginx, "GET", ECHO).status == 200
    assert recorder.connections == 1


def test_a_request_reaches_the_service_once_it_is_whole(
    recorder: Recorder, tmp_path: Path, authority: Authority
) -> None:
    with running(tmp_path, "generic_http.conf", recorder.url, authority) as nginx:
        head = f"POST {QUERY} HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=30) as slow:
            slow.sendall(head + b"0123456789")
            assert send(nginx, "GET", ECHO).status == 200
            assert len(recorder.got) == recorder.connections == 1
            slow.sendall(b"0123456789")
            assert slow.recv(100).startswith(b"HTTP/1.1 200")
    assert len(recorder.got) == 2


def test_a_service_that_is_down_or_slow_is_an_error_response(
    recorder: Recorder, tmp_path: Path, authority: Authority
) -> None:
    recorder.open.clear()
    faster = {"proxy_read_timeout 60s": "proxy_read_timeout 100ms"}
    with running(tmp_path, "generic_http.conf", recorder.url, authority, **faster) as nginx:
        answer = send(nginx, "POST", f"{QUERY}?a=b")
        assert (answer.status, answer.error) == (504, "The service does not answer in time")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with running(tmp_path / "down", "generic_http.conf", nobody, authority) as nginx:
        answer = send(nginx, "DELETE", f"{MANAGEMENT}/lock/remove/A?instanceIds=x")
        assert (answer.status, answer.error) == (502, "The service does not answer")


def test_the_service_may_listen_on_a_unix_socket(
    serve: Callable[..., Process], tmp_path: Path, authority: Authority
) -> None:
    path = tmp_path / "http.sock"
    process = serve("--unix-socket", str(path), "--authentication-policy", "certificate",
                    "--cloud", CLOUD, "--trusted-proxies", "")  # fmt: skip
    assert process.url == f"http+unix://{str(path).replace('/', '%2F')}"
    authority.revocations()
    replace = {
        "orchmgmt-upstream.conf": "orchmgmt-upstream-unix.conf",
        "/run/orchmgmt/http.sock": str(path),
    }
    name = "generic_https_certificate.conf"
    with running(tmp_path, name, "http://x", authority, **replace) as nginx:
        tls = context(authority, authority.operator())
        assert send(nginx, "POST", QUERY, tls=tls).status == 200
        assert send(nginx, "POST", QUERY, tls=context(authority, authority.system())).status == 403


# generic_https.


def context(authority: Authority, client: Issued | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca_file)
    if client is not None:
        path = authority.folder / "client.pem"
        client.save(path)
        context.load_cert_chain(path)
    return context


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("https")
    with (
        on_waitress(DATABASE_URL="sqlite:///:memory:") as service,
        running(folder, "generic_https.conf", service.url, authority) as nginx,
    ):
        yield nginx


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
def test_tls_1_2_and_1_3(secure: Nginx, authority: Authority, version: ssl.TLSVersion) -> None:
    tls = context(authority)
    tls.minimum_version = tls.maximum_version = version
    assert send(secure, "POST", QUERY, {"Authorization": OPERATOR}, tls=tls).status == 200
    assert send(secure, "POST", QUERY, tls=tls).status == 401


def test_nothing_older_than_tls_1_2(secure: Nginx, authority: Authority) -> None:
    tls = context(authority)
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point here
        tls.minimum_version = ssl.TLSVersion.TLSv1
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        send(secure, "GET", ECHO, tls=tls)


def test_plain_http_at_the_port_of_https_is_an_error_response(secure: Nginx) -> None:
    answer = raw(
        Client(f"http://127.0.0.1:{secure.port}"),
        f"GET {ECHO} HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
    )
    assert answer.status == 400
    assert answer.error


# generic_https with client certificates.


@pytest.fixture(scope="module")
def revoked(authority: Authority) -> Issued:
    return authority.operator("revoked")


@pytest.fixture(scope="module")
def mutual(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, revoked: Issued
) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("mutual")
    authority.revocations(revoked)
    settings = {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD}
    with (
        on_waitress(DATABASE_URL="sqlite:///:memory:", **settings) as service,
        running(folder, "generic_https_certificate.conf", service.url, authority) as nginx,
    ):
        yield nginx


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_certificate_is_the_identity(
    mutual: Nginx, authority: Authority, version: ssl.TLSVersion
) -> None:
    for issued, statuses in [
        (authority.operator(), (200, 200)),
        (authority.system(), (200, 403)),
        (authority.system("sysop"), (200, 403)),
    ]:
        tls = context(authority, issued)
        tls.minimum_version = tls.maximum_version = version
        found = send(mutual, "GET", ECHO, tls=tls), send(mutual, "POST", QUERY, tls=tls)
        assert tuple(it.status for it in found) == statuses


def test_bad_certificates_do_not_get_through(
    mutual: Nginx, authority: Authority, revoked: Issued, tmp_path: Path
) -> None:
    good = subject(f"carol.{DOMAIN}", qualifiers=("op",))
    stranger = Authority(tmp_path, "stranger")
    (tmp_path / "lookalike").mkdir()
    lookalike = Authority(tmp_path / "lookalike")
    for case, issued, status in [
        ("none", None, 401),
        ("wrong cloud", authority.issue(subject("a.b.c.arrowhead.eu", qualifiers=("op",))), 403),
        ("four labels", authority.issue(subject(DOMAIN, qualifiers=("op",))), 403),
        ("no qualifier", authority.issue(subject(f"carol.{DOMAIN}")), 403),
        ("expired", authority.issue(good, starts=NOW - 2 * DAY, ends=NOW - DAY), 401),
        ("not yet valid", authority.issue(good, starts=NOW + DAY, ends=NOW + 2 * DAY), 401),
        ("self-signed", authority.issue(good, self_signed=True), 401),
        ("other authority", stranger.issue(good), 401),
        ("authority that calls itself so", lookalike.issue(good), 401),
        ("revoked", revoked, 401),
    ]:
        tls = context(authority, issued)
        for headers in ({}, {"Authorization": OPERATOR}):
            answer = send(mutual, "POST", f"{QUERY}?a=b", headers, tls=tls)
            assert (answer.status, bool(answer.error)) == (status, True), case
            if status == 401:
                none = answer.error == "No client certificate has been provided"
                bad = answer.error.startswith("The client certificate is not valid: expired, ")
                assert (none, bad) == (case == "none", case != "none"), case


def test_a_revocation_list_that_is_out_of_date_locks_everybody_out_and_the_log_says_so(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path)
    authority.revocations(ends=NOW - DAY)
    tls = context(authority, authority.operator())
    settings = {"AUTHENTICATION_POLICY": "certificate", "CLOUD": CLOUD}
    with (
        on_waitress(DATABASE_URL="sqlite:///:memory:", **settings) as service,
        running(
            tmp_path / "nginx", "generic_https_certificate.conf", service.url, authority
        ) as nginx,
    ):
        answer = send(nginx, "POST", QUERY, tls=tls)
        assert answer.status == 401
        assert answer.error.startswith("The client certificate is not valid: ")
        assert "CRL has expired" in nginx.log


def test_a_clients_own_header_does_not_get_through(mutual: Nginx, authority: Authority) -> None:
    operator = authority.operator().escaped
    tls = context(authority, authority.system())
    for name in ("X-Client-Certificate", "x-client-certificate", "X_Client_Certificate"):
        assert send(mutual, "POST", QUERY, {name: operator}, tls=tls).status == 403
    request = (
        f"POST {QUERY} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        f"X-Client-Certificate: {operator}\r\nX-Client-Certificate: {operator}\r\n\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", mutual.port), timeout=30) as connection,
        tls.wrap_socket(connection, server_hostname="127.0.0.1") as secured,
    ):
        secured.sendall(request.encode())
        assert secured.recv(100).startswith(b"HTTP/1.1 403")
    # Nor does it help somebody without a certificate.
    answer = send(mutual, "POST", QUERY, {"X-Client-Certificate": operator}, tls=context(authority))
    assert answer.status == 401


def test_only_the_verified_certificate_reaches_the_service(
    recorder: Recorder, tmp_path: Path, authority: Authority, revoked: Issued
) -> None:
    authority.revocations(revoked)
    issued = authority.system()
    name = "generic_https_certificate.conf"
    with running(tmp_path, name, recorder.url, authority) as nginx:
        tls = context(authority, issued)
        assert send(nginx, "GET", ECHO, SPOOFED, tls=tls).status == 200
    (headers,) = recorder.got
    (value,) = headers.get_all("X-Client-Certificate") or []
    assert unquote(value) == issued.pem
    assert headers.get_all("X-Forwarded-Proto") == ["https"]
    assert "spoofed" not in str(headers)


def test_a_session_is_not_taken_up_again(mutual: Nginx, authority: Authority) -> None:
    """Whoever is revoked after a handshake could otherwise stay in."""
    for version in VERSIONS:
        tls = context(authority, authority.operator())
        tls.minimum_version = tls.maximum_version = version
        session = None
        for _ in range(2):
            connection = socket.create_connection(("127.0.0.1", mutual.port), timeout=30)
            with tls.wrap_socket(
                connection, server_hostname="127.0.0.1", session=session
            ) as secured:
                secured.sendall(f"GET {ECHO} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                assert secured.recv(100).startswith(b"HTTP/1.1 200")
                assert not secured.session_reused
                session = secured.session
