"""Who may ask: tokens that are none, hosts and pages that are others', and limits that limit."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gateways import RunningGateway, running, tr_mmap
from raw_http import ask_raw
from support import wait_until

from tr_mmap.gateway.errors import Unauthorized
from tr_mmap.gateway.tokens import Tokens, read_key_file

ALGORITHMS = "/api/v1/python/algorithms"
EXECUTE = "/api/v1/python/execute"


def _part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _claims(**changed: Any) -> dict[str, Any]:
    said = {"sub": "eve", "aud": "tr-mmap", "exp": int(time.time()) + 3600, "scope": "admin", **changed}
    return {name: value for name, value in said.items() if value is not ...}


@pytest.fixture(scope="module")
def open_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that counts no failed tries, so that a test may have many; it has other names, and a proxy."""
    auth = 'requests_per_minute = 0\nfailures_per_minute = 0\naudit_log = "audit.jsonl"'
    server = (
        'allowed_hosts = ["api.example.org"]\nallowed_origins = ["https://page.example.org"]\n'
        'trusted_proxies = ["127.0.0.1"]'
    )
    with running(tmp_path_factory.mktemp("tokens"), auth=auth, server=server) as started:
        yield started


def _forged(gateway: RunningGateway) -> dict[str, str]:
    """Tokens that grant nothing, by what is wrong with them."""
    key = read_key_file(gateway.folder / "tr_mmap.key")
    pair = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = pair.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

    def signed(signing: bytes = key, algorithm: str = "HS256", **changed: Any) -> str:
        return jwt.encode(_claims(**changed), signing, algorithm=algorithm)

    good = signed()
    assert gateway.ask("GET", ALGORITHMS, token=good).status_code == 200
    header, payload, signature = good.split(".")
    return {
        "garbage": "garbage",
        "dots": "..",
        "three parts": "a.b.c",
        "the key": key.decode(),
        "no algorithm": f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(_claims())}.",
        "no algorithm, signed": f"{_part({'alg': 'none'})}.{payload}.{signature}",
        "NoNe": f"{_part({'alg': 'NoNe'})}.{payload}.",
        "no alg": f"{_part({'typ': 'JWT'})}.{payload}.{signature}",
        "RS256": signed(private, "RS256"),
        "HS512": signed(algorithm="HS512"),
        "HS384": signed(algorithm="HS384"),
        "header says RS256": f"{_part({'alg': 'RS256', 'typ': 'JWT'})}.{payload}.{signature}",
        "another key": signed(b"x" * 48),
        "an empty key": _signed_by_hand({"alg": "HS256"}, b""),
        "its own key": _signed_by_hand({"alg": "HS256", "jwk": {"kty": "oct", "k": _part(b"x" * 48)}}, b"x" * 48),
        "a key's file": _signed_by_hand({"alg": "HS256", "kid": "../../../../dev/null"}, b""),
        "no signature": f"{header}.{payload}.",
        "half a signature": f"{header}.{payload}.{signature[:20]}",
        "other claims": f"{header}.{_part(_claims(sub='root'))}.{signature}",
        "expired": signed(exp=int(time.time()) - 1),
        "long expired": signed(exp=0),
        "no end": signed(exp=...),
        "an end in words": signed(exp="tomorrow"),
        "an end as text": signed(exp=str(int(time.time()) + 3600)),
        "an end that floats lack": signed(exp=10**400),
        "an infinite end": signed(exp=float("inf")),
        "an end that is no number": signed(exp=float("nan")),
        "not yet": signed(nbf=int(time.time()) + 3600),
        "issued later": signed(iat=int(time.time()) + 3600),
        "no audience": signed(aud=...),
        "another audience": signed(aud="another"),
        "part of an audience": signed(aud="tr-mma"),
        "no subject": signed(sub=...),
        "an empty subject": signed(sub=""),
        "a number as subject": signed(sub=5),
        "a line break in the subject": signed(sub="eve\nadmin"),
        "half a character in the subject": signed(sub="\ud800"),
        "a long subject": signed(sub="e" * 300),
        "a list of scopes": signed(scope=["admin"]),
        "deep header": f"{_part(b'[' * 5000)}.{payload}.{signature}",
        "deep claims": _signed_by_hand({"alg": "HS256"}, key, b"[" * 3000),
        "no text": f"{_part(bytes(range(128, 256)))}.{payload}.{signature}",
        "accents": "é.é.é",
    }


def _signed_by_hand(header: dict[str, Any], key: bytes, claims: bytes | None = None) -> str:
    import hashlib
    import hmac

    said = f"{_part(header)}.{_part(_claims() if claims is None else claims)}"
    return f"{said}.{_part(hmac.digest(key, said.encode(), hashlib.sha256))}"


def test_no_token_but_a_valid_one_opens_anything(open_gateway: RunningGateway) -> None:
    for what, token in _forged(open_gateway).items():
        headers = {"authorization": f"Bearer {token}".encode("latin-1", "replace")}
        answer = open_gateway.ask("GET", ALGORITHMS, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (401, "Unauthorized"), (what, answer.text)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert token not in answer.text
    assert not [each for each in open_gateway.logged() if each["level"] == "error"]


def test_a_public_key_is_no_secret() -> None:
    """RS256 and HS256 confused: a public key as the secret, which everybody has."""
    pair = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = pair.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    by_hand = _signed_by_hand({"alg": "HS256", "typ": "JWT"}, public)
    with pytest.raises(Unauthorized):
        Tokens(b"k" * 48, "tr-mmap").verify(by_hand)
    with pytest.raises(Exception, match="asymmetric"):  # and as the gateway's own key it is refused altogether
        Tokens(public, "tr-mmap").verify(by_hand)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Basic YWRhOmFkYQ==",
        "Token {}",
        "{}",
        "Bearer{}",
        "Bearer {} {}",
        "Bearer {},",
        "Negotiate {}",
    ],
)
def test_a_header_of_another_form_is_no_token(open_gateway: RunningGateway, value: str) -> None:
    token = open_gateway.token("admin")
    headers = {"authorization": value.replace("{}", token)}
    assert open_gateway.ask("GET", ALGORITHMS, headers=headers).status_code == 401


def test_two_tokens_are_none(open_gateway: RunningGateway) -> None:
    line = f"Authorization: Bearer {open_gateway.token('admin')}\r\n"
    answer = ask_raw(open_gateway, f"GET {ALGORITHMS} HTTP/1.1\r\nHost: localhost\r\n{line}{line}\r\n".encode())
    assert answer is not None
    assert answer.status == 401


def test_a_token_is_taken_from_its_header_only(open_gateway: RunningGateway) -> None:
    token = open_gateway.token("admin")
    for name in ("token", "access_token", "authorization", "bearer", "jwt", "api_key"):
        answer = open_gateway.ask("GET", f"{ALGORITHMS}?{name}={token}", headers={"authorization": ""})
        assert answer.status_code == 401
    for headers in ({"cookie": f"token={token}"}, {"x-api-key": token}, {"proxy-authorization": f"Bearer {token}"}):
        answer = open_gateway.ask("GET", ALGORITHMS, headers={"authorization": "", **headers})
        assert answer.status_code == 401
    assert token not in "".join(open_gateway.lines)


def test_a_token_of_a_megabyte_costs_nothing(open_gateway: RunningGateway) -> None:
    for length, status in ((9000, 401), (1 << 20, 431)):
        token = open_gateway.token("admin", more="x" * length)
        assert open_gateway.ask("GET", ALGORITHMS, token=token).status_code == status
    with pytest.raises(Unauthorized, match="longer"):
        Tokens(b"k" * 48, "tr-mmap").verify("x" * (1 << 20))


def test_a_token_that_was_good_is_refused_from_its_end_on(open_gateway: RunningGateway) -> None:
    token = open_gateway.token("admin", valid_s=2)
    assert open_gateway.ask("GET", ALGORITHMS, token=token).status_code == 200
    wait_until(lambda: open_gateway.ask("GET", ALGORITHMS, token=token).status_code == 401)
    assert "expired" in open_gateway.ask("GET", ALGORITHMS, token=token).json()["error"]


@pytest.mark.parametrize("scopes", [(), ("store",), ("metrics",), ("execut",), ("Execute",), ("*",), ("store:admin",)])
def test_a_scope_that_is_not_granted_opens_nothing(open_gateway: RunningGateway, scopes: tuple[str, ...]) -> None:
    key = read_key_file(open_gateway.folder / "tr_mmap.key")
    token = jwt.encode(_claims(scope=" ".join(scopes)), key, algorithm="HS256")
    for method, path, needed in _operations(open_gateway):
        if needed in scopes or needed is None or (needed.startswith("store") and scopes == ("store",)):
            continue
        answer = open_gateway.ask(method, path, {}, token=token)
        assert answer.status_code == 403, (method, path, answer.text)
        assert answer.json()["type"] == "Forbidden"


def _operations(gateway: RunningGateway) -> list[tuple[str, str, str | None]]:
    """Every method and path of the document, and the scope that it says it needs."""
    found = []
    for path, methods in gateway.ask("GET", "/openapi.json").json()["paths"].items():
        for method, said in methods.items():
            needed = None if said.get("security") == [] else said.get("description", "`metrics`").split("`")[1]
            found.append((method.upper(), path.replace("{", "").replace("}", ""), needed))
    return found


@pytest.mark.parametrize("subject", ["", "a\nb", "x" * 257])
def test_no_token_is_made_for_a_subject_that_is_none(open_gateway: RunningGateway, subject: str) -> None:
    made = tr_mmap("token", "--config", open_gateway.folder / "tr_mmap.toml", "--subject", subject)
    assert (made.returncode, made.stdout) == (2, "")
    assert "a subject is a text of 1 to 256 printable characters" in made.stderr


def test_there_is_no_anonymous_session(open_gateway: RunningGateway) -> None:
    """The original took requests without a token as those of an anonymous user."""
    operations = _operations(open_gateway)
    assert len(operations) >= 12
    for method, path, needed in operations:
        answer = open_gateway.ask(method, path, headers={"authorization": ""})
        assert answer.status_code == (200 if needed is None else 401), (method, path)
    assert {path for _, path, needed in operations if needed is None} == {"/healthz"}


# -- how often -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with the limits that it has by default."""
    with running(tmp_path_factory.mktemp("limited"), auth='audit_log = "audit.jsonl"') as started:
        yield started


def test_the_rate_limit_limits_each_token(limited: RunningGateway) -> None:
    """The original counted requests, and refused none."""
    token = limited.token("admin")
    statuses = [limited.ask("GET", ALGORITHMS, token=token).status_code for _ in range(30)]
    assert statuses[:10] == [200] * 10
    assert statuses.count(429) >= 10  # one more a second is let in, however slow this is
    answer = limited.ask("GET", ALGORITHMS, token=token)
    assert answer.status_code in (200, 429)
    if answer.status_code == 429:
        assert answer.json()["type"] == "RateLimited"
        assert int(answer.headers["retry-after"]) >= 1
    assert limited.ask("GET", ALGORITHMS, token=limited.token("admin")).status_code == 200  # another token


def test_a_token_without_an_id_of_its_own_is_limited_by_its_subject(limited: RunningGateway) -> None:
    key = read_key_file(limited.folder / "tr_mmap.key")
    tokens = [jwt.encode(_claims(sub="many", exp=int(time.time()) + 60 + n), key, algorithm="HS256") for n in range(30)]
    assert 429 in [limited.ask("GET", ALGORITHMS, token=each).status_code for each in tokens]


# -- hosts, pages, proxies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "evil@localhost",
        "localhost/x",
        "localhost#x",
        "localhost?x",
        "localhost,evil.example",
        "169.254.169.254",
        "0.0.0.0",
        "[::",
        "[::1",
        "localhost:x",
        "localhost:123456",
        "127.0.0.1.nip.io",
        "local host",
        "2130706433",
    ],
)
def test_a_name_that_was_bound_anew_is_not_this_host(open_gateway: RunningGateway, host: str) -> None:
    answer = open_gateway.ask("GET", ALGORITHMS, headers={"host": host})
    assert (answer.status_code, answer.json()["type"]) == (400, "BadRequest")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:3000", "[::1]", "[::1]:3000"])
def test_this_host_s_names_are_taken(open_gateway: RunningGateway, host: str) -> None:
    assert open_gateway.ask("GET", ALGORITHMS, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "https://localhost", "x", ""])
def test_scripts_of_other_pages_may_not_ask(open_gateway: RunningGateway, origin: str) -> None:
    for method, path in (("GET", ALGORITHMS), ("GET", "/healthz"), ("OPTIONS", EXECUTE)):
        headers = {"origin": origin, "host": "localhost:3000", "access-control-request-method": "POST"}
        answer = open_gateway.ask(method, path, headers=headers)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_its_own_pages_may_ask_and_no_others_may_read(open_gateway: RunningGateway) -> None:
    headers = {"origin": "http://localhost:3000", "host": "localhost:3000"}
    answer = open_gateway.ask("GET", ALGORITHMS, headers=headers)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert open_gateway.ask("OPTIONS", EXECUTE, headers=headers).status_code == 405


def test_every_answer_forbids_guesses_of_its_type_and_copies_of_it(open_gateway: RunningGateway) -> None:
    for path in (ALGORITHMS, "/healthz", "/metrics", "/nope", "/docs", "/openapi.json", f"{ALGORITHMS}/%2f", "/%00"):
        answer = open_gateway.ask("GET", path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers
    assert "frame-ancestors 'none'" in open_gateway.ask("GET", "/docs").headers["content-security-policy"]
    garbage = ask_raw(open_gateway, b"garbage\r\n\r\n")
    assert garbage is not None
    assert (garbage.headers["cache-control"], garbage.headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert "server" not in garbage.headers


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("api.example.org", "https://page.example.org", 200),
        ("API.example.org:8443", "https://page.example.org/", 200),
        ("api.example.org", "https://other.example.org", 403),
        ("other.example.org", "https://page.example.org", 400),
    ],
)
def test_more_hosts_and_origins_are_those_of_the_configuration(
    open_gateway: RunningGateway, host: str, origin: str, status: int
) -> None:
    headers = {"host": host, "origin": origin}
    assert open_gateway.ask("GET", ALGORITHMS, headers=headers).status_code == status


def _client_in_audit(gateway: RunningGateway, request_id: str) -> str:
    headers = {"x-forwarded-for": "192.0.2.7", "forwarded": "for=192.0.2.7", "x-request-id": request_id}
    token = gateway.token("store", subject=request_id)
    assert gateway.ask("GET", ALGORITHMS, token=token, headers=headers).status_code == 403
    path = gateway.folder / "audit.jsonl"
    wait_until(lambda: request_id in path.read_text())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return "".join(each["client"] for each in lines if each["request_id"] == request_id)


def test_only_a_trusted_proxy_is_believed_who_asked(limited: RunningGateway, open_gateway: RunningGateway) -> None:
    assert _client_in_audit(open_gateway, "believed") == "192.0.2.7"
    assert _client_in_audit(limited, "not.believed") == "127.0.0.1"


# -- last, for an address that has failed too often is heard with known tokens only ----------------------------------


def test_failed_tries_are_limited_and_known_tokens_still_pass(limited: RunningGateway) -> None:
    known = limited.token("admin")
    assert limited.ask("GET", ALGORITHMS, token=known).status_code == 200
    statuses = [limited.ask("GET", ALGORITHMS, token=f"a.b.{each}").status_code for each in range(40)]
    assert statuses[:20] == [401] * 20
    assert 429 in statuses[20:]
    assert limited.ask("GET", ALGORITHMS, token=known).status_code == 200
    answer = limited.ask("GET", ALGORITHMS, token="a.b.c")
    assert answer.status_code in (401, 429)
    assert "token" in answer.json()["error"]
