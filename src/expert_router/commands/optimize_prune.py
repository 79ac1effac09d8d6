"""``expert-router optimize prune``: a base without the layers that matter least, as an entry of models.lock."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expert_router.commands.measuring import numbers
from expert_router.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from expert_router.settings import Settings
    from expert_router.types import Expert
    from expert_router.weights import LockedModel


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("prune")
    group.add_argument("--base", metavar="NAME", help="models.lock entry (default: the configured)")
    group.add_argument(
        "--layers", type=int, metavar="N", help="how many stay; which, is measured: needs the train extra"
    )
    group.add_argument("--without", metavar="N,N", help="instead: the layers to leave out, numbered from 0")
    group.add_argument("--prompts", type=int, default=32, metavar="N", help="to measure the layers on (default: 32)")


def prune(args: Namespace, settings: Settings, experts: Mapping[str, Expert]) -> int:
    from expert_router.serving.parts import fetch_model
    from expert_router.weights import load_lock
    from expert_router.weights.gguf_file import count_layers

    if (args.layers is None) == (args.without is None):
        raise ConfigError("Say how many layers stay, with --layers, or which ones do not, with --without.")
    if args.prompts < 1:
        raise ConfigError(f"--prompts takes a number from 1 on, not {args.prompts}.")
    base = args.base or settings.engine.base_model
    model, files = fetch_model(settings, base, progress=True)
    if model.pruned is not None or len(files) != 1:
        raise ConfigError(f"{base} is not a whole model of one GGUF file: name another with --base.")
    (source,) = files.values()
    count = count_layers(source)
    given = _given(args, count)
    name = f"{base}-{count - len(given) if given else args.layers}-layers"
    there = load_lock(settings.resolve(settings.paths.models_lock)).get(name)
    if there is not None:
        return _already(there, base, given)
    without, influences = given, None
    if not given:
        influences = _influences(args, settings, experts, source)
        without = _least_influential(influences, count - args.layers)
    path = _make(settings, model, source, name, without, influences=influences)
    print(f"{path} is {base} without {len(without)} of its {count} layers: {', '.join(map(str, without))}.")
    _print_next(name, experts)
    return 0


def _given(args: Namespace, count: int) -> list[int]:
    """The layers that --without names; empty when --layers says how many stay."""
    if args.layers is not None:
        if not 1 <= args.layers < count:
            raise ConfigError(
                f"--layers takes a number from 1 to {count - 1}, not {args.layers}: there are {count} layers."
            )
        return []
    layers = sorted(set(numbers(args.without, "--without")))
    if not set(layers) < set(range(count)):
        raise ConfigError(f"--without takes some of the layers 0 to {count - 1}, not all: {args.without}.")
    return layers


def _already(there: LockedModel, base: str, given: list[int]) -> int:
    """The same base again is no mistake; another one under the same name is."""
    pruned = there.pruned
    if pruned is None or pruned.base.name != base or (given and list(pruned.without_layers) != given):
        raise ConfigError(f"models.lock has another {there.name} already: take that out first.")
    print(f"models.lock has {pruned} already, as {there.name}.")
    return 0


def _influences(args: Namespace, settings: Settings, experts: Mapping[str, Expert], source: Path) -> list[float]:
    """Each layer's, over the experts' validation questions with their passages."""
    try:
        from expert_router.training.base import load_base
        from expert_router.training.influence import layer_influences
    except ImportError as error:
        raise ConfigError(
            f"Measuring the layers needs more packages ({error}): pip install 'expert-router[train]'. "
            "Or name them with --without."
        ) from error
    from expert_router.commands.train_expert import read_examples
    from expert_router.serving.parts import Parts

    data = settings.resolve(settings.paths.data) / "processed"
    parts = Parts(settings, experts, progress=True)
    share = -(-args.prompts // len(experts))
    examples = [
        example
        for expert in experts.values()
        for example in _spread(read_examples(parts, data, expert, "calibration", [0]), share)
    ]
    return layer_influences(load_base(source), examples, progress=True)


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """So many of them, evenly over all."""
    return items[:: max(1, len(items) // count)][:count]


def _least_influential(influences: Sequence[float], count: int) -> list[int]:
    from expert_router.training.influence import least_influential

    return least_influential(influences, count)


def _make(
    settings: Settings,
    base: LockedModel,
    source: Path,
    name: str,
    without: Sequence[int],
    *,
    influences: Sequence[float] | None,
) -> Path:
    """Write the file, what is known about it beside it, and its entry last; nothing of it stays when that fails."""
    from expert_router.artifacts import sha256_of, write_atomically
    from expert_router.serving.parts import fetch_model
    from expert_router.weights.gguf_file import leave_out_layers

    folder = settings.resolve(settings.paths.cache) / "weights" / name
    lock = settings.resolve(settings.paths.models_lock)
    path = folder / f"{name}.gguf"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as scratch:
            made = Path(scratch) / path.name
            leave_out_layers(source, made, without)
            digest, size = sha256_of(made), made.stat().st_size
            made.replace(path)
        about = {
            "base": base.name,
            "base_sha256": base.files[0].sha256,
            "without_layers": without,
            "sha256": digest,
            "influences": influences,
        }
        write_atomically(folder / f"{name}.json", (json.dumps(about, indent=2) + "\n").encode())
        write_atomically(lock, (lock.read_text("utf-8") + _entry(base, name, without, digest, size)).encode())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WeightsError(f"{name} cannot be made in {folder}: {error}. Free some space there and retry.") from error
    fetch_model(settings, name, progress=True)  # reads the entry back and proves the file
    return path


def _entry(base: LockedModel, name: str, without: Sequence[int], digest: str, size: int) -> str:
    (file,) = base.files
    return f"""
# Made here: expert-router optimize prune --base {base.name} --without {",".join(map(str, without))}
[["{name}".files]]
name = "{name}.gguf"
size = {size}
sha256 = "{digest}"
licence = {json.dumps(file.licence)}
upstream = {json.dumps(file.upstream)}

[["{name}".files.sources]]
kind = "pruned"
base = "{base.name}"
without_layers = [{", ".join(map(str, without))}]
"""


def _print_next(name: str, experts: Mapping[str, Expert]) -> None:
    print("It answers badly until adapters have been trained on it, which heals it and teaches the field at once:")
    for expert in experts:
        print(f"  expert-router train expert {expert} --base {name} --install")
    print("Then: expert-router optimize")
