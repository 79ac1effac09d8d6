"""The original's design on the base model that is served here, to compare with.

Two transformers models in memory, each with its expert's adapter merged in; a zero-shot router of BART-large-mnli's
exact shape (random weights: they take as long); one question at a time: route it, then ``generate`` all of the answer.
It runs in a process of its own, so that each side's memory is its own. Needs the extras train and zero-shot.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expert_router.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from multiprocessing.connection import Connection

LOAD_WITHIN_S = 600.0
ANSWER_WITHIN_S = 600.0
END_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class OriginalSetup:
    """``adapters`` are PEFT's folders by expert, ``None`` where the base itself answers; ``titles`` the topics.

    ``bart`` overrides the router's shape, for small tests.
    """

    base: Path
    adapters: Mapping[str, Path | None]
    titles: Mapping[str, str]
    instructions: Mapping[str, str]
    tokens: int
    threads: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    bart: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class OriginalAnswer:
    expert: str
    tokens: int
    seconds: float
    route_s: float
    peak_bytes: int
    """Of its process, so far."""


class OriginalProcess:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def ask(self, question: str) -> OriginalAnswer:
        """Raises ``EngineError`` when it fails or takes too long."""
        self._pipe.send(question)
        answer = _received(self._pipe, ANSWER_WITHIN_S)
        assert isinstance(answer, OriginalAnswer)
        return answer


@contextmanager
def original(setup: OriginalSetup) -> Iterator[OriginalProcess]:
    """Loaded and ready. Raises ``ConfigError`` where the extras are missing, and ``EngineError``."""
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, setup), daemon=True)
    process.start()
    its.close()  # here: so that its end is seen
    try:
        _received(ours, LOAD_WITHIN_S)
        yield OriginalProcess(ours)
    finally:
        ours.close()  # which ends it, unless it is in the middle of an answer
        process.join(END_WITHIN_S)
        process.kill()
        process.join()


def peak_memory_bytes() -> int:
    """Of this process, so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux


def _received(pipe: Connection, within_s: float) -> Any:
    try:
        if not pipe.poll(within_s):
            raise EngineError(f"The original's design was silent for {within_s:g} s.")
        said = pipe.recv()
    except (EOFError, OSError) as error:
        raise EngineError("The original's design ended without a word: was there memory enough?") from error
    if isinstance(said, Exception):
        raise said
    return said


def _serve(pipe: Connection, setup: OriginalSetup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks ends it
    try:
        system = _Original(setup)
        pipe.send("ready")
        while True:
            pipe.send(system.answer(pipe.recv()))
    except EOFError:  # nobody asks any more
        return
    except ImportError as error:
        pipe.send(ConfigError(f"The original's design needs more packages ({error}): expert-router[train,zero-shot]"))
    except Exception as error:  # noqa: BLE001 - said where it was asked for
        pipe.send(EngineError(f"The original's design failed: {error!r}"))


class _Original:
    def __init__(self, setup: OriginalSetup) -> None:
        import torch

        from expert_router.evaluation.zero_shot_shape import save_random_bart_mnli
        from expert_router.routing.zero_shot import ZeroShotRouter
        from expert_router.training.base import load_base

        self._setup = setup
        with tempfile.TemporaryDirectory() as folder:
            save_random_bart_mnli(Path(folder), **(setup.bart or {}))
            topics = {name: title.lower() for name, title in setup.titles.items()}
            self._router = ZeroShotRouter(topics, folder, None, setup.threads)
        self._experts = {}
        for name, adapter in setup.adapters.items():
            base = load_base(setup.base)
            model = base.model.to(getattr(torch, setup.dtype))
            self._experts[name] = (_merged(model, adapter).eval(), base.tokenizer)

    def answer(self, question: str) -> OriginalAnswer:
        """Greedily, exactly so many tokens: an end of the text does not end it."""
        import torch

        from expert_router.training.base import template_ids

        started = time.perf_counter()
        expert = self._router.score(question).ranked()[0][0]
        route_s = time.perf_counter() - started
        model, tokenizer = self._experts[expert]
        turns = [
            {"role": "system", "content": self._setup.instructions[expert]},
            {"role": "user", "content": question},
        ]
        ids = torch.tensor([template_ids(tokenizer, turns, to_answer=True)])
        exactly = {"min_new_tokens": self._setup.tokens, "max_new_tokens": self._setup.tokens}
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **exactly)
        made = whole[0, ids.shape[1] :]
        tokenizer.decode(made, skip_special_tokens=True)
        seconds = time.perf_counter() - started
        return OriginalAnswer(expert, len(made), seconds, route_s, peak_memory_bytes())


def _merged(model: Any, adapter: Path | None) -> Any:
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
