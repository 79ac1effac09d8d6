"""What browsers are told: headers on every answer, other sites only where they are named, pages that still work."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from expert_router.engines.echo import EchoEngine
from expert_router.errors import ConfigError
from expert_router.keys import changing, new_key
from expert_router.settings import load_settings
from support import chat_body, eventually, serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver.remote.webdriver import WebDriver

    from support import Server

SITE = "https://app.example.org"
PREFLIGHT = {
    "origin": SITE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}
VIOLATIONS = """
window.violated = window.violated || [];
document.addEventListener('securitypolicyviolation', event => window.violated.push(event.effectiveDirective));
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve(EchoEngine()) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "sent", "status"),
    [
        ("GET", "/health/live", {}, 200),
        ("POST", "/v1/chat/completions", {"json": chat_body()}, 200),
        ("POST", "/v1/chat/completions", {"json": chat_body(stream=True)}, 200),
        ("POST", "/v1/chat/completions", {"content": b"x" * 2_000_000}, 413),
        ("GET", "/nothing", {}, 404),
        ("GET", "/", {}, 307),
        ("GET", "/docs", {}, 200),
    ],
)
def test_every_answer_has_them(server: Server, method: str, path: str, sent: dict[str, Any], status: int) -> None:
    response = server.http.request(method, path, **sent)
    assert response.status_code == status
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"
    loads = "'self'" if path == "/docs" else "'none'"
    assert response.headers["content-security-policy"].startswith(f"default-src {loads};")
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


def test_no_site_may_ask_unless_it_is_named(server: Server) -> None:
    refused = server.http.options("/v1/chat/completions", headers=PREFLIGHT)
    asked = server.http.get("/v1/models", headers={"origin": SITE})
    for response in (refused, asked):
        assert not [name for name in response.headers if name.startswith("access-control-")]
    assert refused.status_code == 405


def test_a_site_that_is_named_may_ask_with_a_key_and_no_other_may(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    key, secret = new_key("laura")
    with changing(path) as keys:
        keys[key.id] = key
    with serve(EchoEngine(), keys=path, cors_origins=(SITE,)) as server:
        allowed = server.http.options("/v1/chat/completions", headers=PREFLIGHT)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == SITE
        assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
        assert "access-control-allow-credentials" not in allowed.headers  # a browser's passwords stay at home
        answer = server.http.post(
            "/v1/chat/completions", json=chat_body(), headers={"origin": SITE, "authorization": f"Bearer {secret}"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == SITE
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
        refused = server.http.get("/v1/models", headers={"origin": SITE})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, SITE)  # it may read why
        other = server.http.options("/v1/chat/completions", headers={**PREFLIGHT, "origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/", "https://a, https://b", ""])
def test_what_is_no_origin_is_said_at_start(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("EXPERT_ROUTER_SERVER__CORS_ORIGINS", f'["{origin}"]')
    with pytest.raises(ConfigError, match="cors_origins"):
        load_settings("echo")


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[WebDriver]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path}"):
        options.add_argument(flag)
    options.page_load_strategy = "eager"  # the CDN may be out of reach
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": VIOLATIONS})
    yield driver
    driver.quit()


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromium-driver are not installed",
)
def test_the_pages_of_documentation_may_load_what_they_name_and_nothing_else(server: Server, driver: WebDriver) -> None:
    for path in ("/docs", "/redoc"):
        driver.get(f"{server.url}{path}")
        assert "expert-router" in driver.title
        assert driver.execute_script("return window.violated") == []
        driver.execute_script("new Image().src = 'http://203.0.113.1/pixel.png'")
        eventually(lambda: driver.execute_script("return window.violated") == ["img-src"])
