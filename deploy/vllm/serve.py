"""Start vLLM with a base model and the adapters that the experts have for it, by the names that a gateway asks for.

``BASE_MODEL`` is the gateway's ``engine.base_model``, ``MODEL`` where vLLM finds its weights (a hub name or a folder;
the same unless told), ``EXPERTS`` the experts' folder. Arguments are vLLM's own. ``--print`` shows the command,
``--health`` asks a running server. Standard library only: vLLM's image has nothing else of this project but experts.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
from pathlib import Path
from urllib.request import urlopen

RANKS = (8, 16, 32, 64, 128, 256)
"""What vLLM makes room for; an adapter of rank 6 takes 8."""
HASH_DIGITS = 12
PORT = os.environ.get("PORT", "8000")


def command(base_model: str, model: str, experts: Path, further: list[str]) -> list[str]:
    """``vllm serve`` with each adapter by its expert's name and hash, so that an older one is found out."""
    words = ["vllm", "serve", model, "--served-model-name", base_model, "--host", "0.0.0.0", "--port", PORT]  # noqa: S104
    adapters = dict(_adapters(base_model, experts))
    if adapters:
        rank = max(json.loads((path / "adapter_config.json").read_text("utf-8"))["r"] for path in adapters.values())
        fitting = next(each for each in RANKS if each >= rank)
        words += ["--enable-lora", "--max-lora-rank", str(fitting), "--max-loras", str(len(adapters)), "--lora-modules"]
        words += [f"{name}={path}" for name, path in adapters.items()]
    return words + further


def _adapters(base_model: str, experts: Path) -> list[tuple[str, Path]]:
    found = []
    for manifest in sorted(experts.glob("*/expert.toml")):
        expert = tomllib.loads(manifest.read_text("utf-8"))
        adapter = expert.get("adapters", {}).get(base_model)
        if adapter is not None:
            name = expert.get("name", manifest.parent.name)
            found.append((f"{name}@{adapter['sha256'][:HASH_DIGITS]}", manifest.parent / adapter["path"]))
    return found


def main() -> None:
    further = sys.argv[1:]
    if further == ["--health"]:
        with urlopen(f"http://127.0.0.1:{PORT}/health", timeout=4):
            return
    base_model = os.environ.get("BASE_MODEL", "")
    if not base_model:
        sys.exit("BASE_MODEL is not set: the gateway's engine.base_model, for example qwen2.5-coder-0.5b-instruct.")
    shown = "--print" in further
    words = command(
        base_model,
        os.environ.get("MODEL") or base_model,
        Path(os.environ.get("EXPERTS", "experts")),
        [word for word in further if word != "--print"],
    )
    if shown:
        print(json.dumps(words))
    else:
        os.execvp(words[0], words)  # noqa: S606 - in this process's place, so that it is the one that is asked to end


if __name__ == "__main__":
    main()
