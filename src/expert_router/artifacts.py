"""The only module that knows the folders on disk: expert manifests, and artifacts with a manifest and hashes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import tomllib
from contextlib import suppress
from dataclasses import asdict, fields
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from expert_router.errors import ConfigError
from expert_router.types import (
    AUTO,
    DEFAULT_QUANTIZATION,
    GENERAL,
    QUANTIZATIONS,
    Abstention,
    Adapter,
    Expert,
    ModelVariant,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
MAX_QUOTE = 100
"""Characters of a name in an error text."""
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def refuse_pickles(folder: Path) -> None:
    """Raises ``ConfigError`` for an adapter that is saved in a format which runs what is in it when it is read."""
    pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix.lower() in PICKLES]
    if pickles and not (folder / ADAPTER_WEIGHTS).exists():
        raise ConfigError(
            f"{folder} has {pickles[0]}, which would run whatever is in it when it is read, so it is not. Save the "
            f"adapter as {ADAPTER_WEIGHTS}: in PEFT, save_pretrained(…, safe_serialization=True)."
        )


def within(folder: Path, name: str) -> Path:
    """The path of a file below ``folder``. Raises ``ValueError`` for a name that leads elsewhere."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name[:MAX_QUOTE]!r} is no file below {folder}")
    return folder / path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """Of a large file, which is read once in a process while its size and its date stay the same."""
    stat = path.stat()
    return _sha256_of_version(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of_version(path: Path, *_: int) -> str:
    return sha256_of(path)


def write_atomically(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step: a reader sees the old or the new one, also after a crash or on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_artifact(folder: Path, files: dict[str, bytes], about: dict[str, Any]) -> None:
    """Write files and a manifest that pins their hashes; the manifest goes last, so a crash leaves no valid half."""
    for name, content in files.items():
        write_atomically(folder / name, content)
    manifest = {**about, "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}}
    write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())


def read_artifact(folder: Path) -> dict[str, Any]:
    """Read a manifest and check the files it pins. Raises ``ConfigError`` when something is missing or altered."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        files: dict[Path, str] = {within(folder, name): pinned for name, pinned in manifest["files"].items()}
    except FileNotFoundError:
        raise ConfigError(f"There is no artifact in {folder}: {MANIFEST} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a manifest: {error}") from error
    for file, pinned in files.items():
        with suppress(OSError):
            if sha256_of(file) == pinned:
                continue
        raise ConfigError(f"{file} is missing or is not the file that {path} pins.")
    return manifest


def install_adapter(expert: Path, base: str, trained: Path, about: dict[str, Any]) -> Adapter:
    """Copy what PEFT saved in ``trained`` to the expert's folder and name it, with its hash, in the expert's manifest.

    Its configuration then names ``base``, not where that lay when it was trained. Raises ``ConfigError`` when
    ``trained`` is not an adapter or the manifest cannot name it; nothing is changed then.
    """
    refuse_pickles(trained)
    try:
        config = {**json.loads((trained / ADAPTER_CONFIG).read_text("utf-8")), "base_model_name_or_path": base}
        files = {
            ADAPTER_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            ADAPTER_WEIGHTS: (trained / ADAPTER_WEIGHTS).read_bytes(),
        }
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{trained} is not an adapter as PEFT saves it: {error}") from error
    place = Path("adapters") / base.replace("/", "--")
    adapter = Adapter(expert / place, hashlib.sha256(files[ADAPTER_WEIGHTS]).hexdigest())
    path = expert / "expert.toml"
    text = _with_line(
        path, _read_manifest(path), "adapters", base, {"path": place.as_posix(), "sha256": adapter.sha256}
    )
    for name, variant in load_expert(path, expert).serve_as.items():
        if variant.base == base:
            text = _with_line(path, text, "serve_as", name, None)
    text = _with_line(path, text, "abstention", base, None)
    write_artifact(expert / place, files, about)
    write_atomically(path, text.encode())
    return adapter


def install_variant(expert: Path, base: str, variant: ModelVariant) -> None:
    """Say in the expert's manifest what it is served as where ``base`` is configured.

    Raises ``ConfigError`` when the manifest cannot say it; nothing is changed then.
    """
    path = expert / "expert.toml"
    plain = variant == ModelVariant(base, DEFAULT_QUANTIZATION)
    entry = None if plain else {"base": variant.base, "quantization": variant.quantization}
    write_atomically(path, _with_line(path, _read_manifest(path), "serve_as", base, entry).encode())


def install_abstention(expert: Path, base: str, rule: Abstention) -> None:
    """Say in the expert's manifest when it refuses with its adapter for ``base``.

    Raises ``ConfigError`` when the manifest cannot say it; nothing is changed then.
    """
    path = expert / "expert.toml"
    entry = {name: value if isinstance(value, str) else round(value, 4) for name, value in asdict(rule).items()}
    write_atomically(path, _with_line(path, _read_manifest(path), "abstention", base, entry).encode())


def _read_manifest(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not an expert manifest: {error}") from error


def _with_line(path: Path, text: str, table: str, key: str, entry: Mapping[str, str | float] | None) -> str:
    """The manifest's text with one line of a table set, or without it; everything else as it was written."""
    try:
        meant = tomllib.loads(text)
        there = {name: value for name, value in meant.get(table, {}).items() if name != key}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is not an expert manifest: {error}") from error
    if entry is None and table not in meant:
        return text
    values = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in (entry or {}).items())
    new = [f'"{key}" = {{ {values} }}'] if entry else []
    before, inside, after = _around_table(text.removesuffix("\n").split("\n"), table)
    kept = [line for line in inside if not line.startswith(f'"{key}" = ')]
    written = "\n".join([*before, *new, *kept, *after]) + "\n"
    if not _says(written, {**meant, table: {**there, key: entry} if entry else there}):
        # It is there already in another spelling, or is no name for a line.
        line = new[0] if new else f'"{key}" left out'
        raise ConfigError(f"{path} names its {table} in a way that is left alone. Set it there by hand: {line}")
    return written


def _around_table(lines: list[str], table: str) -> tuple[list[str], list[str], list[str]]:
    """The lines up to a table's heading, its own, and those of the tables that follow; the heading is added at need."""
    heading = f"[{table}]"
    at = next((n for n, line in enumerate(lines) if line.partition("#")[0].strip() == heading), None)
    if at is None:
        return [*lines, "", heading], [], []
    end = next((n for n in range(at + 1, len(lines)) if lines[n].lstrip().startswith("[")), len(lines))
    return lines[: at + 1], lines[at + 1 : end], lines[end:]


def _says(text: str, meant: dict[str, Any]) -> bool:
    try:
        return tomllib.loads(text) == meant
    except tomllib.TOMLDecodeError:
        return False


def load_experts(folder: Path, home: Path) -> dict[str, Expert]:
    """All experts below ``folder``, by name, in alphabetical order. Raises ``ConfigError`` when there is none."""
    manifests = sorted(folder.glob("*/expert.toml"))
    if not manifests:
        raise ConfigError(f"No expert was found: {folder} has no <name>/expert.toml.")
    experts = [load_expert(path, home) for path in manifests]
    return {expert.name: expert for expert in experts}


def load_expert(path: Path, home: Path) -> Expert:
    """Read one manifest. Paths in it count from ``home``, the adapters' from the manifest's folder."""
    try:
        with path.open("rb") as file:
            manifest = tomllib.load(file)
        return _expert_from(manifest, path, home)
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not an expert manifest: {error}") from error


_TEXTS = ("name", "title", "description", "instructions")
_KEYS = {*_TEXTS, "examples", "base_model", "adapters", "serve_as", "abstention", "data"}


def _expert_from(manifest: dict[str, Any], path: Path, home: Path) -> Expert:
    if unknown := set(manifest) - _KEYS:
        raise ValueError(f"unknown keys {sorted(unknown)}; known: {sorted(_KEYS)}")
    for key in _TEXTS:
        if not isinstance(manifest.get(key), str):
            raise TypeError(f"{key} is missing or is not text")
    if not isinstance(manifest.get("examples", []), list):
        raise TypeError("examples is not a list")
    name = manifest["name"]
    if name in {AUTO, GENERAL} or not name.isidentifier() or name != name.lower():
        raise ValueError(f"the name {name!r} must be a lower-case word other than {AUTO!r} and {GENERAL!r}")
    if name != path.parent.name:
        raise ValueError(f"the name {name!r} differs from its folder {path.parent.name!r}")
    data = _table(manifest, "data", {"questions", "split_name", "knowledge", "reading", "unanswerable", "unseen"})
    adapters = _adapters(manifest.get("adapters", {}), path.parent)
    return Expert(
        name=name,
        title=manifest["title"],
        description=manifest["description"],
        instructions=manifest["instructions"].strip(),
        examples=tuple(manifest.get("examples", ())),
        base_model=manifest.get("base_model"),
        adapters=adapters,
        serve_as=_variants(manifest.get("serve_as", {}), adapters),
        abstention=_abstention(manifest.get("abstention", {}), adapters, path.parent),
        questions=home / data["questions"] if "questions" in data else None,
        knowledge=home / data["knowledge"] if "knowledge" in data else None,
        reading=home / data["reading"] if "reading" in data else None,
        unanswerable=home / data["unanswerable"] if "unanswerable" in data else None,
        unseen=home / data["unseen"] if "unseen" in data else None,
        split_name=data.get("split_name", name),
    )


def _adapters(table: object, folder: Path) -> dict[str, Adapter]:
    if not isinstance(table, dict):
        raise TypeError("adapters must be a table")
    for base, entry in table.items():
        keys = isinstance(entry, dict) and {key for key, value in entry.items() if isinstance(value, str)}
        if keys != {"path", "sha256"} or len(entry) != len(keys):
            raise ValueError(f"the adapter for {base!r} must have a path and a sha256, and nothing else")
    return {base: Adapter(folder / entry["path"], entry["sha256"]) for base, entry in table.items()}


def _variants(table: object, adapters: dict[str, Adapter]) -> dict[str, ModelVariant]:
    if not isinstance(table, dict):
        raise TypeError("serve_as must be a table")
    for name, entry in table.items():
        if not isinstance(entry, dict) or set(entry) != {"base", "quantization"}:
            raise ValueError(f"what is served as {name!r} must have a base and a quantization, and nothing else")
        if entry["base"] not in adapters:
            raise ValueError(f"{name!r} cannot be served as {entry['base']!r}, for which there is no adapter")
        if entry["quantization"] not in QUANTIZATIONS:
            raise ValueError(f"the quantization of {name!r} must be one of {', '.join(QUANTIZATIONS)}")
    return {name: ModelVariant(entry["base"], entry["quantization"]) for name, entry in table.items()}


def _abstention(table: object, adapters: dict[str, Adapter], folder: Path) -> dict[str, Abstention]:
    """The rules; one for other weights than the adapter's is left out, as it would refuse at the wrong point."""
    if not isinstance(table, dict):
        raise TypeError("abstention must be a table")
    names = [each.name for each in fields(Abstention)]
    rules = {}
    for base, entry in table.items():
        if not isinstance(entry, dict) or sorted(entry) != sorted(names) or not isinstance(entry["adapter"], str):
            raise ValueError(f"when it abstains on {base!r} must have {', '.join(names)}, and nothing else")
        if not all(isinstance(entry[name], int | float) and isfinite(entry[name]) for name in names[1:]):
            raise ValueError(f"when it abstains on {base!r} must be numbers")
        if base not in adapters:
            raise ValueError(f"it cannot abstain on {base!r}, for which there is no adapter")
        if adapters[base].sha256.startswith(entry["adapter"]):
            rules[base] = Abstention(**entry)
        else:
            logger.warning("%s: [abstention] is of another adapter than %s has. Calibrate it anew.", folder, base)
    return rules


def _table(manifest: dict[str, Any], key: str, known: set[str]) -> dict[str, Any]:
    table = manifest.get(key, {})
    if not isinstance(table, dict) or not set(table) <= known:
        raise ValueError(f"{key} must be a table with no other keys than {sorted(known)}")
    return table
