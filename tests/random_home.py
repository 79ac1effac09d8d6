"""A checkout with models of random weights, tiny but real."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tiny_gguf import write_llama

from support import make_home

if TYPE_CHECKING:
    from pathlib import Path

PROFILE = """
[router]
name = "lexical"
[engine]
base_model = "random"
threads = 1
[knowledge]
passages = 0
[cache]
store = "none"
"""
LOCKED = """
[["{name}".files]]
name = "{name}.gguf"
size = {size}
sha256 = "{sha256}"
licence = "MIT"
upstream = "none"
[["{name}".files.sources]]
kind = "path"
path = "{name}.gguf"
"""


def make_random_home(folder: Path) -> Path:
    """A checkout whose ``random`` profile has the sleep expert on one tiny model and the cars' on another."""
    home = make_home(folder)
    entries = []
    for seed, name in enumerate(("random", "other")):
        path = home / f"{name}.gguf"
        write_llama(path, context_tokens=8192, seed=seed)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(LOCKED.format(name=name, size=path.stat().st_size, sha256=digest))
    (home / "models.lock").write_text("".join(entries))
    (home / "configs" / "random.toml").write_text(PROFILE)
    manifest = home / "experts" / "cars" / "expert.toml"
    manifest.write_text('base_model = "other"\n' + manifest.read_text("utf-8"), "utf-8")
    return home
