"""How the clients ask: again where they may, in time, without copies, and with nothing but httpx."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import inspect
import ipaddress
import json
import pickle
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from blocking_clients import KINDS, client_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gateways import RunningGateway, configure, configure_with_key, running, tr_mmap
from model_folders import put, safetensors_of
from relays import Relay
from support import run_python, wait_until

from tr_mmap.errors import ResponseTimeout, TRException
from tr_mmap.gateway import (
    AsyncClient,
    AsyncRemoteStore,
    AsyncTask,
    Client,
    ClientClosed,
    Config,
    ConnectionLost,
    Gateway,
    GatewayError,
    RemoteStore,
    Task,
    Unreachable,
)
from tr_mmap.gateway.api import ErrorBody, ExecuteBody, ExecuteResult, RegisterBody
from tr_mmap.gateway.client import failures, messages
from tr_mmap.gateway.client.answers import Inbox
from tr_mmap.gateway.client.results import read_result
from tr_mmap.gateway.errors import BadRequest, Busy, NotFound, Overloaded, TooLarge

both = pytest.mark.parametrize("kind", KINDS)
FOREVER = "while True: pass"


# -- again, and in time ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that soon has enough, with models."""
    more = '[scheduler]\nmax_workers = 1\nqueue_size = 1\n[python.models]\nmodel_dir = "models"'
    auth = "requests_per_minute = 1200\nburst = 2"
    folder = tmp_path_factory.mktemp("small")
    for version in (1, 2):
        put(folder / "models" / "scale" / str(version), model__safetensors=safetensors_of(by=np.float32([version])))
    with running(folder, more, auth=auth, server="max_body_mb = 1") as started:
        yield started


@both
def test_what_is_refused_for_now_is_asked_again_when_the_gateway_says(small: RunningGateway, kind: str) -> None:
    with client_of(kind, small.url, small.token("execute")) as client:
        assert [client.execute("output = inputs['n']", {"n": n}).value for n in range(6)] == list(range(6))


@contextmanager
def full(gateway: RunningGateway, kind: str) -> Iterator[None]:
    """No room is left in a gateway: one run goes on, and one waits."""
    with client_of(kind, gateway.url, gateway.token("execute", subject="eve")) as client:
        tasks = [client.submit(code=FOREVER, timeout_ms=60_000) for _ in range(2)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@both
def test_who_does_not_want_that_is_told_at_once(small: RunningGateway, kind: str) -> None:
    subject = f"impatient-{kind}"
    with full(small, kind), client_of(kind, small.url, small.token("execute", subject=subject), retry=False) as client:
        with pytest.raises(Overloaded) as caught:
            client.execute("output = 1")
        assert caught.value.retry_after_s >= 0.1
        assert isinstance(caught.value, Busy)
    wait_until(lambda: any(each.get("subject") == subject for each in small.logged()))
    assert [each["status"] for each in small.logged() if each.get("subject") == subject] == [503]


@both
def test_asking_again_ends_with_the_time_of_the_call(small: RunningGateway, kind: str) -> None:
    with (
        full(small, kind),
        client_of(kind, small.url, small.token("execute"), timeout_s=0.5) as client,
        pytest.raises((Busy, TimeoutError)) as caught,  # the last try may have no time left
    ):
        client.execute("output = 1")
    assert isinstance(caught.value, Busy) or "refused it: 1 runs" in caught.value.__notes__[0]


@both
def test_a_body_that_is_too_large_says_what_the_gateway_takes(small: RunningGateway, kind: str) -> None:
    with client_of(kind, small.url, small.token("execute")) as client:
        for _ in range(3):
            with pytest.raises(TooLarge) as caught:
                client.execute("output = 1", {"x": np.zeros(8 << 20, np.uint8)})
            assert caught.value.limit_nbytes == 1 << 20


@both
def test_a_call_ends_when_its_time_is_over(gateway: RunningGateway, kind: str) -> None:
    with client_of(kind, gateway.url, gateway.token("execute"), timeout_s=0.3) as client:
        with pytest.raises(TimeoutError, match=r"POST /api/v1/python/execute within 0\.3"):
            client.execute(FOREVER)
        assert client.execute("output = 1", timeout_ms=10_000).value == 1
    wait_until(lambda: not running_now(gateway))


class Silence(httpx.SyncByteStream, httpx.AsyncByteStream):
    """The body of a response that has begun, and does not go on in time."""

    def __iter__(self) -> Iterator[bytes]:
        yield b": still there\n\n"
        raise httpx.ReadTimeout("nothing comes")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for each in self:
            yield each


@both
def test_a_task_that_has_not_ended_in_time_is_no_gateway_that_does_not_answer(kind: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Silence())

    with (
        client_of(kind, "http://localhost:3000", "token", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ResponseTimeout) as caught,
    ):
        client.task("0123").result(timeout_s=0.5)
    said = "the task 0123 has not ended within 0.5 s; it goes on: ask for its result again, or cancel it"
    assert str(caught.value).startswith(said)
    assert caught.value.timeout_ms == 500


def running_now(gateway: RunningGateway) -> int:
    return int(gateway.ask("GET", "/api/v1/scheduler/status").json()["queues"]["python"]["running"])


@pytest.fixture
def relay(gateway: RunningGateway) -> Iterator[Relay]:
    made = Relay(gateway.address)
    yield made
    made.close()


@both
def test_a_task_whose_response_was_lost_is_asked_for_again_and_started_once(
    gateway: RunningGateway, relay: Relay, kind: str
) -> None:
    def tasks() -> int:
        return sum(gateway.ask("GET", "/api/v1/scheduler/status").json()["tasks"].values())

    before = tasks()
    with client_of(kind, relay.url, gateway.token("admin")) as client:
        relay.cut = 2
        assert client.submit(code="output = 5").result().value == 5
        relay.cut = 1
        assert client.execute("output = 6").value == 6
    assert relay.cut == 0
    assert tasks() == before + 1


@both
def test_a_lost_response_is_an_error_where_nothing_is_to_be_repeated(
    gateway: RunningGateway, relay: Relay, kind: str
) -> None:
    with client_of(kind, relay.url, gateway.token("execute"), retry=False) as client:
        relay.cut = 1
        with pytest.raises(ConnectionLost, match="lost"):
            client.execute("output = 1")


@both
def test_a_client_that_was_closed_says_so(gateway: RunningGateway, kind: str) -> None:
    with client_of(kind, gateway.url, None) as client:
        assert client.health().status == "ok"
        (client.close if kind == "sync" else client.aclose)()
        with pytest.raises(ClientClosed, match="closed"):
            client.health()


@both
def test_a_gateway_that_is_not_there_is_named(kind: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with client_of(kind, url, "token") as client, pytest.raises(Unreachable, match="tr-mmap serve") as caught:
            client.algorithms()
    assert caught.value.url == url
    assert isinstance(caught.value, ConnectionError)


@contextmanager
def other_server(status: int, body: bytes) -> Iterator[str]:
    """A server of HTTP that is no gateway."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@both
@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (200, b"{}"), (502, b"<h1>Bad gateway</h1>"), (302, b""), (204, b"")]
)
def test_what_is_no_gateway_is_an_error_with_its_status(kind: str, status: int, body: bytes) -> None:
    with other_server(status, body) as url, client_of(kind, url, "token") as client:
        with pytest.raises(GatewayError, match="no gateway's") as caught:
            client.algorithms()
        assert caught.value.status == status


@both
def test_models_are_listed_loaded_and_used_and_dependencies_told(small: RunningGateway, kind: str) -> None:
    with client_of(kind, small.url, small.token("admin")) as client:
        assert client.load_model("scale", 1).served == 1
        assert client.load_model("scale").served == 2
        assert [(each.name, each.versions, each.state) for each in client.models()] == [("scale", (1, 2), "loaded")]
        client.register("scaled", "output = inputs['x'] * inputs['model']['by']", model="scale")
        assert client.run("scaled", {"x": np.float32([1, 2])}).value.tolist() == [2, 4]
        with pytest.raises(NotFound, match="other"):
            client.load_model("other")
        told = client.dependencies()
        assert (told.auto_install, told.environments) == (False, [])


# -- errors by their names -------------------------------------------------------------------------------------------


def body_of(kind: str, details: Any) -> ErrorBody:
    return ErrorBody(error="what", status_code=418, type=kind, request_id="abc", details=details)


@pytest.mark.parametrize("kind", failures._KINDS.values(), ids=lambda kind: kind.__name__)
def test_every_error_that_a_gateway_names_is_raised_as_itself(kind: type[TRException]) -> None:
    for details in (msgspec.UNSET, {"retry_after_s": 0.5, "stdout": "said", "traceback": "line 1"}):
        error = failures.error_of(body_of(kind.__name__, details))
        assert type(error) is kind
        assert (str(error), error.request_id) == ("what", "abc")  # type: ignore[attr-defined]
        assert type(pickle.loads(pickle.dumps(error))) is kind


def test_an_error_of_another_name_keeps_what_the_gateway_says() -> None:
    error = failures.error_of(body_of("Teapot", {"colour": "blue"}))
    assert isinstance(error, GatewayError)
    assert (error.status, error.type, error.details, error.request_id) == (418, "Teapot", {"colour": "blue"}, "abc")
    hostile = failures.error_of(body_of("NotFound", {"__class__": 1, "with_traceback": 2}))
    assert callable(hostile.with_traceback)


# -- without copies --------------------------------------------------------------------------------------------------


def test_a_tensor_is_sent_from_where_it_lies_and_never_as_text() -> None:
    array = np.arange(1 << 16, dtype=np.float32)
    ask = messages.execute(
        None, "output = 1", {"a": np.ones(3), "x": array}, framework=None, with_key=True, timeout_ms=None
    )
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in ask.pieces if len(piece))
    assert len(ask.pieces[0]) % 64 == 0
    said = json.loads(bytes(ask.pieces[0]))["inputs"]
    assert said["x"] == {"dtype": "float32", "shape": [1 << 16], "offset": 64, "nbytes": array.nbytes}


@pytest.mark.parametrize("has_length", [True, False])
def test_a_result_s_tensors_lie_in_the_memory_that_received_it(has_length: bool) -> None:
    array = np.arange(1000, dtype=np.complex128)
    said = {"dtype": "complex128", "shape": [1000], "offset": 0, "nbytes": array.nbytes}
    text = msgspec.json.encode(ExecuteResult(result={"x": said}))
    body = text + array.tobytes()
    headers = httpx.Headers({"content-type": "application/octet-stream", "TR-JSON-Length": str(len(text))})
    if has_length:
        headers["content-length"] = str(len(body))
    inbox = Inbox(200, headers)
    for begin in range(0, len(body), 777):
        inbox.take(body[begin : begin + 777])
    answer = inbox.answer()
    result = read_result(answer, "numpy")["x"]
    assert np.array_equal(result, array)
    assert np.shares_memory(result, np.frombuffer(answer.body, np.uint8))
    assert result.ctypes.data % 64 == 0
    result[0] = 5  # nobody else has it


# -- what a client is ------------------------------------------------------------------------------------------------


def test_a_client_needs_none_of_the_server_s_packages_and_no_sandbox() -> None:
    program = """
import sys

hidden = {"fastapi", "starlette", "uvicorn", "jwt", "prometheus_client", "wasmtime", "lmdb"}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ImportError(f"{name} is hidden")

sys.meta_path.insert(0, Hidden())
from tr_mmap.gateway import AsyncClient, Client
from tr_mmap.sandbox.errors import LimitExceeded

with Client("http://127.0.0.1:1", "token") as client:
    try:
        client.execute("output = 1")
    except ConnectionError as error:
        print(type(error).__name__)
print(sorted({"tr_mmap.sandbox.box", "tr_mmap.gateway.scheduler", "torch", "asyncio"} & set(sys.modules)))
"""
    ended = run_python("-c", program)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "Unreachable"
    assert "tr_mmap" not in ended.stdout
    assert "torch" not in ended.stdout


def test_names_that_are_imported_late_are_listed() -> None:
    listed = run_python("-c", "import tr_mmap.gateway as g; print(set(g.__all__) <= set(dir(g)), 'Client' in vars(g))")
    assert listed.stdout.split() == ["True", "False"]


def test_without_httpx_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['httpx'] = None; from tr_mmap.gateway import Client"
    ended = run_python("-c", program)
    assert "pip install 'tr_mmap[client]'" in ended.stderr


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Task, AsyncTask), (RemoteStore, AsyncRemoteStore)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(one: type, other: type) -> None:
    def methods(of: type) -> dict[str, list[tuple[str, Any, Any]]]:
        return {
            {"aclose": "close"}.get(name, name): [
                (each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()
            ]
            for name, function in vars(of).items()
            if inspect.isfunction(function) and not name.startswith("_")
        }

    assert methods(one) == methods(other)


def test_every_field_of_a_registration_and_of_a_run_can_be_said() -> None:
    registered = set(inspect.signature(Client.register).parameters) - {"self"}
    assert registered == {*RegisterBody.__struct_fields__, "memory_mb", "cpu_cores"} - {"resource_requirements"}
    run = {*inspect.signature(Client.run).parameters, *inspect.signature(Client.execute).parameters} - {"self"}
    assert run == {*ExecuteBody.__struct_fields__, "framework"} - {"tensors"}  # the client chooses those


def test_address_and_token_come_from_the_environment(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TR_MMAP_URL", gateway.url + "/")
    monkeypatch.setenv("TR_MMAP_TOKEN", gateway.token("execute"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # which loopback is not asked through
    with Client() as client:
        assert client.execute("output = 1").value == 1
        assert repr(client) == f"Client('{gateway.url}')"
    monkeypatch.delenv("TR_MMAP_URL")
    with Client(token="") as client:
        assert client.url == "http://127.0.0.1:3000"


@pytest.mark.parametrize(
    "options",
    [
        {"url": "127.0.0.1:3000"},
        {"url": "ftp://127.0.0.1"},
        {"url": "http://"},
        {"url": "http://me:word@127.0.0.1"},
        {"url": "http://127.0.0.1:x"},
        {"token": "two words"},
        {"token": "a\nb"},
        {"timeout_s": 0},
        {"timeout_s": float("inf")},
        {"timeout_s": "5"},
    ],
)
def test_an_option_that_is_wrong_is_refused(options: dict[str, Any]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(BadRequest):
            kind(**options)


def make_certificate(folder: Path) -> None:
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a gateway of tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*form))


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("nowhere.pem", "key.pem", "server.tls_certificate: {folder}/nowhere.pem cannot be read: No such file"),
        ("certificate.pem", "nowhere.pem", "server.tls_key: {folder}/nowhere.pem cannot be read: No such file"),
        ("certificate.pem", "tr_mmap.key", "server.tls_certificate: {folder}/certificate.pem and tls_key"),
        ("certificate.pem", "other.pem", "server.tls_certificate: {folder}/certificate.pem and tls_key"),
    ],
)
def test_files_of_tls_that_cannot_be_used_are_named_with_their_option(
    folder: Path, certificate: str, key: str, said: str
) -> None:
    make_certificate(folder)
    (folder / "key.pem").rename(folder / "other.pem")
    make_certificate(folder)
    path = configure_with_key(folder, server=f'tls_certificate = "{certificate}"\ntls_key = "{key}"')
    ended = tr_mmap("serve", "--config", path)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert said.format(folder=folder) in ended.stderr


def test_a_gateway_with_tls_is_asked_by_who_trusts_its_certificate(folder: Path) -> None:
    make_certificate(folder)
    context = ssl.create_default_context(cafile=folder / "certificate.pem")
    with running(folder, server='tls_certificate = "certificate.pem"\ntls_key = "key.pem"') as gateway:
        for kind in KINDS:
            with client_of(kind, gateway.url, gateway.token("execute"), verify=context) as client:
                assert client.execute("output = 1").value == 1
            with (
                client_of(kind, gateway.url, gateway.token("execute")) as client,
                pytest.raises(Unreachable, match="certificate"),
            ):
                client.health()


def test_threads_share_a_client(gateway: RunningGateway) -> None:
    with Client(gateway.url, gateway.token("execute")) as client, ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda n: client.execute("output = inputs['n']", {"n": n}).value, range(24))
        assert list(results) == list(range(24))


def test_calls_go_on_beside_each_other_and_a_cancelled_one_ends_its_run(gateway: RunningGateway) -> None:
    async def program() -> list[Any]:
        async with AsyncClient(gateway.url, gateway.token("execute")) as client:
            endless = asyncio.ensure_future(client.execute(FOREVER, timeout_ms=60_000))
            results = await asyncio.gather(*(client.execute("output = inputs['n']", {"n": n}) for n in range(8)))
            while not running_now(gateway):
                await asyncio.sleep(0)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless
            return [each.value for each in results]

    assert asyncio.run(program()) == list(range(8))
    wait_until(lambda: not running_now(gateway))


def test_a_gateway_in_this_process_is_asked_without_a_socket(tmp_path: Path) -> None:
    made = tr_mmap("token", "--config", configure(tmp_path), "--scope", "execute")
    token = made.stdout.splitlines()[-1]

    async def program() -> Any:
        gateway = Gateway(Config.from_toml(tmp_path / "tr_mmap.toml"))
        transport = httpx.ASGITransport(gateway.asgi_app)
        async with AsyncClient(token=token, transport=transport) as client:
            try:
                return (await client.execute("output = inputs['x'] + 1", {"x": np.arange(2)})).value
            finally:
                await gateway.aclose()

    assert asyncio.run(program()).tolist() == [1, 2]
