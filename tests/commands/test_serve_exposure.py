"""The server as a process that others could reach: not without keys unless that is meant, and encrypted."""

from __future__ import annotations

import asyncio
import re
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx2
import pytest
from cli import one_line
from test_serve import serving

from expert_router.commands.exposure import require_closed
from expert_router.commands.serve import listen
from expert_router.errors import ConfigError
from expert_router.keys import changing, new_key
from expert_router.settings import ServerSettings, Settings
from expert_router.ui.client import ChatClient, Failed
from support import chat_body

if TYPE_CHECKING:
    from pathlib import Path

    from cli import CommandLine

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBsDCCAVagAwIBAgIUSCJU3QWsOnhLJarYYv4dJ0+elwUwCgYIKoZIzj0EAwIw
HTEbMBkGA1UEAwwSZXhwZXJ0LXJvdXRlci50ZXN0MCAXDTI2MTEyMzE3MzA1OFoY
DzIxMjYxMDMwMTczMDU4WjAdMRswGQYDVQQDDBJleHBlcnQtcm91dGVyLnRlc3Qw
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR1GjVovqAkWwbB+wjF9V5iNKLxfYVQ
VDO5N0Q0SUd+dBL4kx05sPETdLUSP77e89ZWnBpY+WgRtR8Y/QvanFoDo3IwcDAd
BgNVHQ4EFgQU/oyf6GG1E5LCaokVPLVPo0/1VE0wHwYDVR0jBBgwFoAU/oyf6GG1
E5LCaokVPLVPo0/1VE0wDwYDVR0TAQH/BAUwAwEB/zAdBgNVHREEFjAUghJleHBl
cnQtcm91dGVyLnRlc3QwCgYIKoZIzj0EAwIDSAAwRQIgKbK8sP6W/5zJ+rylhcyW
mRK5fpA9yBsZVVp9WSgAJkICIQDZwGG01wRkFFITgFuvMU9QRXQqBoTROlGeBIVd
jpnUTQ==
-----END CERTIFICATE-----
"""
PRIVATE_KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgpxvdAhBPDodaSCuF
G/oLJilJZddJRnj46mM4CtiIVFqhRANCAAR1GjVovqAkWwbB+wjF9V5iNKLxfYVQ
VDO5N0Q0SUd+dBL4kx05sPETdLUSP77e89ZWnBpY+WgRtR8Y/QvanFoD
-----END PRIVATE KEY-----
"""
"""Made for these tests, for the name expert-router.test, until 2126."""

REFUSED = (
    "Whoever reaches {} could use this without a key: set server.keys and make one (expert-router keys add NAME), "
    "or listen on 127.0.0.1, or say --insecure where that is meant."
)


def make_key(path: Path) -> str:
    key, secret = new_key("laura")
    with changing(path) as keys:
        keys[key.id] = key
    return secret


@pytest.mark.parametrize("command", [("serve", "--no-page"), ("serve", "--workers", "2"), ("chat-page",)])
def test_nothing_listens_beyond_this_machine_without_keys(cli: CommandLine, command: tuple[str, ...]) -> None:
    done = cli.run(*command, "--port", "0", "--host", "0.0.0.0")
    assert done.status == 2
    assert one_line(done) == REFUSED.format("0.0.0.0")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::ffff:0.0.0.0", "0"])
def test_an_address_that_others_reach_needs_keys_or_has_to_be_meant(host: str) -> None:
    refused = listen(host, 0)
    with pytest.raises(ConfigError, match="could use this without a key"):
        require_closed(refused, Settings(), insecure=False)
    assert refused.fileno() == -1  # closed
    with listen(host, 0) as listener:
        require_closed(listener, Settings(), insecure=True)
        require_closed(listener, Settings(server=ServerSettings(insecure=True)), insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "::ffff:127.0.0.1"])
def test_loopback_needs_none(host: str) -> None:
    with listen(host, 0) as listener:
        require_closed(listener, Settings(), insecure=False)
        assert listener.fileno() >= 0


def test_it_listens_where_that_is_meant(cli: CommandLine) -> None:
    with serving(cli, "--no-page", "--host", "0.0.0.0", "--insecure") as server:
        assert server.ask().status_code == 200


def test_it_does_with_keys_and_asks_for_them_in_every_process(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    secret = make_key(path)
    keyed = replace(cli, settings={"EXPERT_ROUTER_SERVER__KEYS": str(path)})
    with serving(keyed, "--workers", "2", "--host", "0.0.0.0") as server:
        assert "-H 'authorization: Bearer KEY'" in server.announced
        for _ in range(6):
            with httpx2.Client(base_url=server.url, trust_env=False) as http:  # a connection each
                assert http.get("/v1/models").status_code == 401
                answer = http.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
                assert answer.status_code == 200


def test_keys_that_cannot_be_read_are_said_before_anything_is_loaded(cli: CommandLine, tmp_path: Path) -> None:
    keyed = replace(cli, settings={"EXPERT_ROUTER_SERVER__KEYS": str(tmp_path / "none.jsonl")})
    for command in (("serve", "--no-page"), ("serve", "--workers", "2"), ("chat-page",)):
        done = keyed.run(*command, "--port", "0")
        assert done.status == 2
        assert "none.jsonl. Make it: expert-router keys add NAME" in one_line(done)


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "cert.pem"
    path.write_text(CERTIFICATE)
    return path


@pytest.fixture
def private_key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_text(PRIVATE_KEY)
    return path


def encrypted(cli: CommandLine, certificate: Path, key: Path | None) -> CommandLine:
    settings = {"EXPERT_ROUTER_SERVER__TLS_CERT": str(certificate)}
    if key is not None:
        settings["EXPERT_ROUTER_SERVER__TLS_KEY"] = str(key)
    return replace(cli, settings=settings)


@pytest.mark.parametrize("arguments", [("--no-page",), ("--workers", "2")])
def test_with_a_certificate_the_server_speaks_https_alone(
    cli: CommandLine, certificate: Path, private_key: Path, arguments: tuple[str, ...]
) -> None:
    with serving(encrypted(cli, certificate, private_key), *arguments) as server:
        assert server.url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with httpx2.Client(verify=trusting, trust_env=False) as http:
            there = {"extensions": {"sni_hostname": "expert-router.test"}}  # the name that it is checked for
            answer = http.post(f"{server.url}/v1/chat/completions", json=chat_body(), **there)
            assert answer.status_code == 200
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            httpx2.get(f"{server.url}/health/live", trust_env=False)
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url.replace('https', 'http')}/health/live", trust_env=False)


def test_the_page_beside_it_trusts_its_certificate_and_no_other_client_does(
    cli: CommandLine, certificate: Path, private_key: Path
) -> None:
    with serving(encrypted(cli, certificate, private_key), "--no-page") as server:
        trusted = asyncio.run(ChatClient(server.url, certificate=certificate).models())
        assert not isinstance(trusted, Failed)
        assert trusted[0].name == "auto"
        assert isinstance(asyncio.run(ChatClient(server.url).models()), Failed)


def test_its_health_is_asked_by_the_servers_own_settings(
    cli: CommandLine, certificate: Path, private_key: Path, tmp_path: Path
) -> None:
    everywhere = {"EXPERT_ROUTER_SERVER__HOST": "0.0.0.0", "EXPERT_ROUTER_SERVER__INSECURE": "true"}
    own = encrypted(cli, certificate, private_key)
    own = replace(own, settings={**own.settings, **everywhere})
    with serving(own, "--no-page") as server:
        port = {"EXPERT_ROUTER_SERVER__PORT": server.url.rpartition(":")[2]}
        asking = replace(own, settings={**own.settings, **port})
        done = asking.run("health")
        assert (done.status, done.out, done.error) == (0, "ready\n", "")
        other = tmp_path / "gone.pem"
        done = replace(asking, settings={**asking.settings, "EXPERT_ROUTER_SERVER__TLS_CERT": str(other)}).run("health")
        assert (done.status, done.error) == (1, "")
        assert done.out.startswith(f"unreachable: {server.url}/health/ready: ")


def test_a_certificate_may_have_its_key_in_the_same_file(cli: CommandLine, certificate: Path) -> None:
    certificate.write_text(CERTIFICATE + PRIVATE_KEY)
    with serving(encrypted(cli, certificate, None), "--no-page") as server:
        assert re.match(r"https://127\.0\.0\.1:\d+", server.url)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "TLS needs a certificate and its key, without a password, in PEM"),
        (PRIVATE_KEY, "TLS needs a certificate and its key"),
        (None, "TLS needs a certificate and its key"),
    ],
)
def test_a_certificate_that_is_none_is_said_in_one_line(
    cli: CommandLine, certificate: Path, private_key: Path, written: str | None, said: str
) -> None:
    if written is None:
        certificate.unlink()
    else:
        certificate.write_text(written)
    done = encrypted(cli, certificate, private_key).run("serve", "--port", "0", "--no-page")
    assert done.status == 2
    assert said in one_line(done)
    assert str(certificate) in one_line(done)


def test_a_key_without_its_certificate_is_said_too(cli: CommandLine, private_key: Path) -> None:
    alone = replace(cli, settings={"EXPERT_ROUTER_SERVER__TLS_KEY": str(private_key)})
    assert "server.tls_key is set without server.tls_cert" in one_line(alone.run("serve", "--port", "0"))
