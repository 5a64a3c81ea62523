"""A store leads nowhere but where the operator's configuration says: seen with real servers on this
machine, without a packet to any other.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelrollout.contract.common import Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store import backend, http_client
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import ObjectStore, object_store

FIELD = "spec.model.uri"


@pytest.fixture(autouse=True)
def packets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that anything in this process connects to; none but this machine's is let
    through.
    """
    seen: list[str] = []
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        seen.append(address[0])
        assert ipaddress.ip_address(address[0]).is_loopback, address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    return seen


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        store.objects["/models/m.onnx"] = b"model"
        yield store


@pytest.fixture
def other() -> Iterator[ObjectStore]:
    with object_store() as store:
        store.objects["/elsewhere/m.onnx"] = b"another"
        yield store


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Addresses by name, for this process."""
    known: dict[str, list[str]] = {}
    ask = socket.getaddrinfo

    def told(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in known:
            return ask(host, port, *args, **kwargs)
        kinds = [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, (a, port, 0, 0) if ":" in a else (a, port))
            for a in known[host]
        ]
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in kinds]

    monkeypatch.setattr(socket, "getaddrinfo", told)
    return known


def read(location: Location, root: Path | None = None) -> bytes:
    return b"".join(Store(location, FIELD, root or Path("/nowhere")).chunks(1 << 20))


def refused(location: Location) -> str:
    with pytest.raises(JobError) as error:
        read(location)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "RedirectRefused")
    assert error.value.message.startswith(f"{FIELD}: {location.uri}: the store ")
    return error.value.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_another_host_is_not_asked(server: ObjectStore, other: ObjectStore, status: int) -> None:
    server.redirects["/models/m.onnx"] = f"{other.url}/elsewhere/m.onnx?X-Amz-Signature=hunter2"
    server.redirect_status = status
    told = refused(server.http("models/m.onnx", leads_to=(f"{server.url}/",)))
    assert f"redirects to {other.url}, which the store's configuration does not name" in told
    assert "redirectsTo" in told and "hunter2" not in told and "elsewhere" not in told
    assert other.requests == []


def test_a_host_that_is_named_is_asked_without_what_opens_the_store(
    server: ObjectStore, other: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "token").write_text("s3cret")
    server.redirects["/m.onnx"] = f"{other.url}/elsewhere/m.onnx?sig=1"
    other.redirects["/elsewhere/m.onnx?sig=1"] = f"{server.url}/back"
    server.objects["/back"] = b"model"
    answer = read(server.http("m.onnx", "mine", (f"{server.url}/", f"{other.url}/elsewhere/")), tmp_path)
    assert answer == b"model"
    assert server.headers[0]["authorization"] == "Bearer s3cret"
    assert other.requests == [("GET", "/elsewhere/m.onnx?sig=1")]
    # Not even its own host gets it once more: who leads back chooses what is asked with it.
    assert all("authorization" not in headers for headers in (*other.headers, *server.headers[1:]))
    assert all("s3cret" not in str(headers) for headers in other.headers)


def test_a_name_holds_for_its_prefix_only(server: ObjectStore, other: ObjectStore) -> None:
    for path in (
        "/elsewhere-2/m.onnx",
        "/m.onnx",
        "/elsewhere/../m.onnx",
        "/elsewhere/%2e%2e/m.onnx",
        "/elsewhere",
    ):
        server.redirects["/m.onnx"] = other.url + path
        refused(server.http("m.onnx", leads_to=(f"{server.url}/", f"{other.url}/elsewhere/")))
    assert other.requests == []


def test_its_own_host_within_the_store(server: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "token").write_text("s3cret")
    for location in (
        "m.onnx",
        "/models/m.onnx",
        f"{server.url}/models/m.onnx",
        f"{server.url}/models/m.onnx#part",
    ):
        server.redirects["/models/latest"] = location
        assert read(server.http("models/latest", "mine", (f"{server.url}/models/",)), tmp_path) == b"model"
    assert all(headers["authorization"] == "Bearer s3cret" for headers in server.headers)


@pytest.mark.parametrize(
    "location",
    [
        "/secrets/x",
        "../secrets/x",
        "..%2fsecrets/x",
        "/models/%2e%2e/secrets/x",
        "/models/./../secrets/x",
        "/models",
    ],
)
def test_its_own_host_outside_of_the_store(server: ObjectStore, location: str) -> None:
    server.objects["/secrets/x"] = b"no model"
    server.redirects["/models/latest"] = location
    refused(server.http("models/latest", leads_to=(f"{server.url}/models/",)))
    assert [path for _, path in server.requests] == ["/models/latest"]


def test_a_task_that_says_nothing_follows_nothing(server: ObjectStore) -> None:
    server.redirects["/models/latest"] = "/models/m.onnx"
    refused(server.http("models/latest"))


def test_chains_end(server: ObjectStore) -> None:
    for i in range(http_client.MOST_REDIRECTS):
        server.redirects[f"/models/{i}"] = f"/models/{i + 1}"
    server.objects[f"/models/{http_client.MOST_REDIRECTS}"] = b"at last"
    everywhere = (f"{server.url}/",)
    assert read(server.http("models/0", leads_to=everywhere)) == b"at last"
    server.redirects["/models/before"] = "/models/0"
    assert f"after {http_client.MOST_REDIRECTS} redirects" in refused(
        server.http("models/before", leads_to=everywhere)
    )


def test_circles_end(server: ObjectStore) -> None:
    server.redirects |= {
        "/models/a": "/models/b",
        "/models/b": "/models/a",
        "/models/self": "",
        "/models/same": "/models/same",
    }
    for name in ("a", "self", "same"):
        server.requests.clear()
        refused(server.http(f"models/{name}", leads_to=(f"{server.url}/",)))
        assert len(server.requests) == http_client.MOST_REDIRECTS + 1


METADATA = (
    "http://169.254.169.254/latest/meta-data/",
    "http://[fe80::1]/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://2852039166/x",
    "http://0xa9fea9fe/x",
    "http://0251.0376.0251.0376/x",
    "//169.254.169.254/x",
    "http://metadata.google.internal/x",
)


@pytest.mark.parametrize("location", METADATA)
def test_the_metadata_service_is_never_asked(server: ObjectStore, packets: list[str], location: str) -> None:
    server.redirects["/m.onnx"] = location
    refused(server.http("m.onnx", leads_to=(f"{server.url}/",)))
    assert set(packets) == {"127.0.0.1"}


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "127.0.0.1", "100.100.100.200", "fd00:ec2::254", "64:ff9b::a9fe:a9fe"]
)
def test_a_name_that_leads_there_is_not_asked_though_it_is_named(
    server: ObjectStore, names: dict[str, list[str]], packets: list[str], address: str
) -> None:
    names["cdn.example.com"] = ["192.0.2.1", address]
    server.redirects["/m.onnx"] = "http://cdn.example.com/m.onnx"
    told = refused(server.http("m.onnx", leads_to=(f"{server.url}/", "http://cdn.example.com/")))
    assert f"cdn.example.com, whose address {address}" in told
    assert set(packets) == {"127.0.0.1"}


def test_a_named_host_that_has_no_address(server: ObjectStore) -> None:
    server.redirects["/m.onnx"] = "http://cdn.invalid/m.onnx"
    with pytest.raises(JobError) as error:
        read(server.http("m.onnx", leads_to=("http://cdn.invalid/",)))
    assert error.value.reason == "StoreNotResolved"


def test_a_named_literal_is_meant(server: ObjectStore, other: ObjectStore) -> None:
    server.redirects["/m.onnx"] = f"{other.url}/elsewhere/m.onnx"
    assert read(server.http("m.onnx", leads_to=(f"{other.url}/",))) == b"another"


STRANGE = (
    "http://",
    "http://[",
    "http://[::1",
    "http://user:hunter2@{host}/models/m.onnx",
    "http:\\\\{host}\\models\\m.onnx",
    "http://{host}\\@example.com/",
    "http://{host}:99999/",
    "http://{host}:x/",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "ftp://{host}/models/m.onnx",
    "s3://models/m.onnx",
    "/models/\tm.onnx",
    "/models/m.onnx\x7f",
    "http://exa℀mple.com/",
    "http://" + "a" * 300 + "/",
    "/" + "a" * 60000,
)


@pytest.mark.parametrize("location", STRANGE, ids=[repr(s[:30]) for s in STRANGE])
def test_strange_places(server: ObjectStore, location: str) -> None:
    server.redirects["/m.onnx"] = (
        location.replace("{host}", server.url.removeprefix("http://")).encode().decode("latin-1")
    )
    told = refused(server.http("m.onnx", leads_to=(f"{server.url}/models/",)))
    assert "hunter2" not in told and len(told) < 1000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.text(st.characters(blacklist_characters="\r\n", max_codepoint=255), max_size=60),
    start=st.sampled_from(["", "/", "//", "http://", "http:"]),
)
def test_whatever_a_store_says_it_ends_in_words(server: ObjectStore, place: str, start: str) -> None:
    server.redirects["/m.onnx"] = start + place
    with pytest.raises(JobError) as error:
        read(server.http("m.onnx", leads_to=(f"{server.url}/models/",)))
    assert error.value.reason == "RedirectRefused"


def test_what_is_written_is_led_nowhere(server: ObjectStore, other: ObjectStore) -> None:
    server.redirects["/artifacts/key/manifest.json"] = f"{other.url}/stolen"
    server.redirect_status = 307
    for location in (server.http("artifacts/key", leads_to=(f"{other.url}/",)), server.s3("artifacts/key")):
        for mode in ("create", "overwrite"):
            with pytest.raises(JobError) as error:
                Store(location, "artifacts").write("manifest.json", b"secret", mode)  # type: ignore[arg-type]
            assert error.value.reason == "RedirectRefused"
    assert other.requests == [] and other.objects == {"/elsewhere/m.onnx": b"another"}


@pytest.mark.parametrize("status", [301, 302, 307])
def test_s3_is_led_nowhere_and_keeps_its_session(
    server: ObjectStore, other: ObjectStore, tmp_path: Path, status: int
) -> None:
    """obstore by itself takes what lies there for the object, and sends the session's token
    along.
    """
    folder = tmp_path / "keys"
    folder.mkdir()
    for key, value in (("ACCESS_KEY_ID", "AKIA"), ("SECRET_ACCESS_KEY", "sk-1"), ("SESSION_TOKEN", "st-1")):
        (folder / f"AWS_{key}").write_text(value)
    server.redirects["/models/m.onnx"] = f"{other.url}/elsewhere/m.onnx"
    server.redirect_status = status
    for credentials in ("keys", None):
        store = Store(server.s3("models/m.onnx", credentials), FIELD, tmp_path)
        for ask in (lambda store=store: b"".join(store.chunks(100)), lambda store=store: store.size("")):  # type: ignore[misc]
            with pytest.raises(JobError) as error:
                ask()
            assert error.value.reason == "RedirectRefused" and "endpoint and region" in error.value.message
            assert "st-1" not in error.value.message
    assert other.requests == []


def test_s3_says_so_that_the_bucket_is_elsewhere(server: ObjectStore) -> None:
    for status, body in (
        (301, b"<Error><Code>PermanentRedirect</Code></Error>"),
        (
            400,
            (
                b"<Error><Code>AuthorizationQueryParametersError</Code><Message>the region 'us-east-1' is"
                b" wrong</Message></Error>"
            ),
        ),
    ):
        server.statuses["/models/m.onnx"] = (status, body)
        with pytest.raises(JobError) as error:
            read(server.s3("models/m.onnx"))
        assert error.value.reason == "WrongRegion"


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ssl.SSLContext]:
    """Server contexts with a certificate for 127.0.0.1 and a name, which this process trusts."""
    bundle = tmp_path / "trusted.pem"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    def made(name: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        alternatives = x509.SubjectAlternativeName(
            [
                x509.DNSName(name),
                *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if name == "own" else []),
            ]
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(alternatives, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        with bundle.open("ab") as file:
            file.write(pem)
        own = tmp_path / f"{name}.pem"
        own.write_bytes(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own)
        return context

    return made


def test_https_never_becomes_http(certified: Callable[[str], ssl.SSLContext], other: ObjectStore) -> None:
    with object_store(certified("own")) as secure:
        secure.objects["/m.onnx"] = b"model"
        assert read(secure.http("m.onnx")) == b"model"
        secure.redirects["/m.onnx"] = f"{other.url}/elsewhere/m.onnx"
        told = refused(secure.http("m.onnx", leads_to=(f"{secure.url}/", f"{other.url}/")))
        assert f"redirects to plain http, {other.url}" in told
        assert other.requests == []


def test_http_may_become_https(certified: Callable[[str], ssl.SSLContext], server: ObjectStore) -> None:
    with object_store(certified("own")) as secure:
        secure.objects["/m.onnx"] = b"model"
        server.redirects["/m.onnx"] = f"{secure.url}/m.onnx"
        assert read(server.http("m.onnx", leads_to=(f"{secure.url}/",))) == b"model"
        refused(server.http("m.onnx", leads_to=(f"{server.url}/",)))


def test_a_named_host_must_prove_its_name(
    certified: Callable[[str], ssl.SSLContext],
    names: dict[str, list[str]],
    server: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The connection goes to the address that was looked at, the certificate and the Host header
    are those of the name.
    """
    monkeypatch.setattr(http_client, "near", lambda address: False)
    names |= {"cdn.example.com": ["127.0.0.1"], "other.example.com": ["127.0.0.1"]}
    with object_store(certified("cdn.example.com")) as cdn:
        cdn.objects["/m.onnx?sig=1"] = b"model"
        port = cdn.url.rpartition(":")[2]
        server.redirects["/m.onnx"] = f"https://cdn.example.com:{port}/m.onnx?sig=1"
        assert read(server.http("m.onnx", leads_to=(f"https://cdn.example.com:{port}/",))) == b"model"
        assert cdn.headers[0]["host"] == f"cdn.example.com:{port}"
        server.redirects["/m.onnx"] = f"https://other.example.com:{port}/m.onnx?sig=1"
        with pytest.raises(JobError) as error:
            read(server.http("m.onnx", leads_to=(f"https://other.example.com:{port}/",)))
        assert error.value.reason == "CertificateRefused"


def test_a_certificate_that_no_authority_signed(
    certified: Callable[[str], ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(certified("own")) as secure:
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(JobError) as error:
            read(secure.http("m.onnx"))
        assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "CertificateRefused")


class Flaky:
    """Breaks off every answer after so many bytes, or refuses the first tries."""

    def __init__(self, body: bytes, piece: int, mark: str | None = '"1"', busy: int = 0) -> None:
        self.body, self.piece, self.mark, self.busy = body, piece, mark, busy
        self.ranges: list[str | None] = []


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Flaky, Location]]:
    monkeypatch.setattr(
        backend,
        "RETRY",
        {
            **backend.RETRY,
            "max_retries": 6,
            "backoff": {
                "init_backoff": datetime.timedelta(0),
                "max_backoff": datetime.timedelta(0),
                "base": 2,
            },
        },
    )
    state = Flaky(bytes(range(256)) * 40, 3000)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            self.close_connection = True
            if state.busy:
                state.busy -= 1
                self.send_error(503)
                return
            if asked and self.headers.get("If-Match") != state.mark:
                self.send_error(412)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(state.body) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(state.body) - 1}/{len(state.body)}")
            if state.mark:
                self.send_header("ETag", state.mark)
            self.end_headers()
            self.wfile.write(state.body[start : start + state.piece])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield state, Location(uri=f"http://127.0.0.1:{server.server_port}/m.onnx", allow_http=True)
    server.shutdown()
    server.server_close()


def test_what_breaks_off_goes_on_where_it_was(
    flaky: tuple[Flaky, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "CHUNK_BYTES", 1000)
    state, location = flaky
    assert read(location) == state.body
    assert state.ranges == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_busy_store_is_asked_again(flaky: tuple[Flaky, Location]) -> None:
    state, location = flaky
    state.piece, state.busy = 1 << 20, 3
    assert read(location) == state.body
    assert len(state.ranges) == 4


@pytest.mark.parametrize("mark", [None, 'W/"1"'])
def test_without_a_mark_nothing_is_pieced_together(flaky: tuple[Flaky, Location], mark: str | None) -> None:
    state, location = flaky
    state.mark = mark
    with pytest.raises(JobError) as error:
        read(location)
    assert (error.value.code, error.value.reason) == (ExitCode.RETRYABLE, "StoreUnreachable")
    assert state.ranges == [None]


def test_of_two_objects_nothing_is_pieced_together(
    flaky: tuple[Flaky, Location], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "CHUNK_BYTES", 1000)
    state, location = flaky
    chunks = Store(location, FIELD).chunks(1 << 20)
    next(chunks)
    state.mark = '"2"'
    with pytest.raises(JobError) as error:
        b"".join(chunks)
    assert (error.value.code, error.value.reason) == (ExitCode.RETRYABLE, "ObjectReplaced")


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "Content-Length: x\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5, 6\r\n",
    ],
)
def test_a_size_that_is_not_told(headers: str) -> None:
    """What ends when the connection does may be half of a model, and would be pinned so."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(f"HTTP/1.1 200 OK\r\n{headers}\r\nmodel".encode())

    threading.Thread(target=answer, daemon=True).start()
    with listener, pytest.raises(JobError) as error:
        read(Location(uri=f"http://127.0.0.1:{listener.getsockname()[1]}/m.onnx", allow_http=True))
    assert (error.value.code, error.value.reason) == (ExitCode.RETRYABLE, "StoreUnreachable")


def test_a_trickle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and all of them never."""
    monkeypatch.setattr(http_client, "TOTAL_SECONDS", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.02):
                connection.sendall(b"x")

    threading.Thread(target=answer, daemon=True).start()
    try:
        with listener, pytest.raises(JobError) as error:
            read(Location(uri=f"http://127.0.0.1:{listener.getsockname()[1]}/m.onnx", allow_http=True))
    finally:
        over.set()
    assert (error.value.code, error.value.reason) == (ExitCode.RETRYABLE, "StoreUnreachable")
