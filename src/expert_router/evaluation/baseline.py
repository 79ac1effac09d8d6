"""The original's design on the base model that is served here, to compare with.

Two transformers models in memory, each with its expert's adapter merged in; a zero-shot router of BART-large-mnli's
exact shape (random weights: they take as long); one question at a time: route it, then ``generate`` all of the answer.
It runs in a process of its own, so that each side's memory is its own. Needs the extras train and zero-shot. Measure on
an idle machine: torch's threads wait for each other at every layer, so that other load slows them out of proportion.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expert_router.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from expert_router.types import Expert

WITHIN_S = 600.0
"""To load, and to give one answer."""


@dataclass(frozen=True, slots=True)
class OriginalSetup:
    """``base`` is the file of the model ``base_name``; ``tokens`` an answer's length.

    ``bart`` overrides the router's shape, for small tests.
    """

    base: Path
    base_name: str
    experts: tuple[Expert, ...]
    tokens: int
    threads: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    bart: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class OriginalAnswer:
    """``peak_bytes`` are its process's, so far."""

    expert: str
    tokens: int
    seconds: float
    route_s: float
    peak_bytes: int


@contextmanager
def original(setup: OriginalSetup) -> Iterator[Callable[[str], OriginalAnswer]]:
    """What answers a question, loaded. Raises ``ConfigError`` where the extras are missing, and ``EngineError``."""
    worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def done(work: Callable[[Any], Any], given: object) -> Any:
        try:
            return worker.submit(work, given).result(WITHIN_S)
        except ImportError as error:
            raise ConfigError(
                f"The original's design needs more packages ({error}): pip install 'expert-router[train,zero-shot]'"
            ) from error
        except (BrokenProcessPool, TimeoutError) as error:
            raise EngineError(f"The original's design died or took over {WITHIN_S:g} s: is there memory?") from error

    try:
        done(_load, setup)
        yield lambda question: done(_answer, question)
    finally:
        worker.shutdown(wait=False, cancel_futures=True)


def peak_memory_bytes() -> int:
    """Of this process so far, and of the largest that it started and that has ended: a model, once it is closed."""
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux


_loaded: list[_Original] = []
"""In the worker: one."""


def _load(setup: OriginalSetup) -> None:
    _loaded.append(_Original(setup))


def _answer(question: str) -> OriginalAnswer:
    return _loaded[0].answer(question)


class _Original:
    def __init__(self, setup: OriginalSetup) -> None:
        import torch
        from peft import PeftModel

        from expert_router.evaluation.zero_shot_shape import save_random_bart_mnli
        from expert_router.routing.zero_shot import ZeroShotRouter
        from expert_router.training.base import load_base

        self._tokens = setup.tokens
        with tempfile.TemporaryDirectory() as folder:
            save_random_bart_mnli(Path(folder), **(setup.bart or {}))
            topics = {expert.name: expert.title.lower() for expert in setup.experts}
            self._router = ZeroShotRouter(topics, folder, None, setup.threads)
        self._models: dict[str, tuple[Expert, Any, Any]] = {}
        for expert in setup.experts:
            base = load_base(setup.base)
            model: Any = base.model.to(getattr(torch, setup.dtype))
            if (adapter := expert.adapter_for(setup.base_name)) is not None:
                model = PeftModel.from_pretrained(model, str(adapter.path)).merge_and_unload()
            self._models[expert.name] = expert, model.eval(), base.tokenizer

    def answer(self, question: str) -> OriginalAnswer:
        """Greedily, and of exactly so many tokens: an end of the text does not end it."""
        import torch

        from expert_router.training.base import template_ids

        started = time.perf_counter()
        expert, model, tokenizer = self._models[self._router.score(question).ranked()[0][0]]
        route_s = time.perf_counter() - started
        turns = [{"role": "system", "content": expert.instructions}, {"role": "user", "content": question}]
        ids = torch.tensor([template_ids(tokenizer, turns, to_answer=True)])
        exactly = {"min_new_tokens": self._tokens, "max_new_tokens": self._tokens}
        with torch.inference_mode():
            whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **exactly)
        made = whole[0, ids.shape[1] :]
        tokenizer.decode(made, skip_special_tokens=True)
        return OriginalAnswer(expert.name, len(made), time.perf_counter() - started, route_s, peak_memory_bytes())
