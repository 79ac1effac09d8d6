"""The chat page where keys are needed: a visitor gives one to see it, and it asks with that one."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest
from fake_backend import free_port, wait_until
from test_page import PAGE, Reader, driver, is_up  # noqa: F401 - a fixture

from expert_router.engines.echo import EchoEngine
from support import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from selenium.webdriver.remote.webdriver import WebDriver

    from support import Server

needs_chromium = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="chromium and chromium-driver are not installed",
)


@pytest.fixture(scope="module")
def backend(keys_file: Path, secret: str) -> Iterator[Server]:  # noqa: ARG001 - the file has a key
    with serve(EchoEngine(), keys=keys_file) as running:
        yield running


@pytest.fixture(scope="module")
def page(backend: Server, keys_file: Path) -> Iterator[str]:
    """The page's address; it listens everywhere, as there are keys."""
    port = free_port()
    command = [sys.executable, "-c", PAGE, "--backend", backend.url, "--host", "0.0.0.0", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(keys_file)) as process:
        assert process.stdout is not None
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        yield f"127.0.0.1:{port}"
        process.terminate()


def environment(keys_file: Path) -> dict[str, str]:
    import os

    return {**os.environ, "EXPERT_ROUTER_SERVER__KEYS": str(keys_file)}


def test_without_a_key_there_is_no_page(page: str, secret: str) -> None:
    for path in ("/", "/gradio_api/info", "/config", "/gradio_api/queue/join"):
        response = httpx2.get(f"http://{page}{path}", trust_env=False)
        assert (response.status_code, response.headers["www-authenticate"].split(" ")[0]) == (401, "Basic")
    password = base64.b64encode(f"me:{secret}".encode()).decode()
    shown = httpx2.get(f"http://{page}/", headers={"authorization": f"Basic {password}"}, trust_env=False)
    assert shown.status_code == 200


@needs_chromium
def test_a_visitor_with_a_key_asks_with_it(driver: WebDriver, page: str, backend: Server, secret: str) -> None:  # noqa: F811
    reader = Reader(driver, f"http://{page}")
    wait_until(lambda: is_up(driver, f"http://me:{secret}@{page}/"), "the page's server answers")
    reader.open()
    wait_until(lambda: "Car history" in reader.texts("#er-choice label"), "the backend's list came, with the key")
    reader.ask("What is REM sleep?")
    assert reader.answer() == "[Sleep science] You asked: What is REM sleep?"
    logged = json.dumps(driver.get_log("browser"))
    assert "Content Security Policy" not in logged
    assert backend.counts()["finished"] == 1
