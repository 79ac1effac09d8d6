"""How prompts are read: in steps that others need not wait for long, and once where they begin alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from test_stacking import adapter_in
from tiny_gguf import prepare_llama, write_lora

from expert_router.engines.loaded_model import (
    GIB,
    MOST_TOKENS,
    REPRODUCIBLE,
    OpenVINOOptions,
    scheduler_settings,
    usual_step_tokens,
)
from expert_router.engines.prepared import GRAPH, PreparedModel, prepare_stack
from expert_router.engines.stepping import _Pipeline
from expert_router.serving.build import ANSWERS_A_THREAD

if TYPE_CHECKING:
    from collections.abc import Callable

    Fresh = Callable[[], "Counted"]

STEP_TOKENS = 64
READ = np.random.default_rng(0).integers(0, 256, 6 * STEP_TOKENS).tolist()
"""As long as instructions and passages are: six steps, where nothing of it was read before."""
QUESTION, OTHER = [7] * 20, [8] * 20


class Counted:
    """A pipeline as it is served, that counts the steps of a prompt."""

    def __init__(self, model: PreparedModel) -> None:
        options = OpenVINOOptions("", 1, 0, GIB, max_batch_size=4, reproducible=True)
        self._pipeline = _Pipeline(
            str(model.folder), scheduler_settings(model.folder / GRAPH, options, STEP_TOKENS), REPRODUCIBLE
        )
        self._vocabulary = model.vocabulary
        self._asked = 0

    def answer(self, ids: list[int], slot: int) -> tuple[int, list[int]]:
        """How many steps it took to read the prompt, and the answer."""
        first = slot * self._vocabulary
        config = {"max_new_tokens": 8, "ignore_eos": True}
        handle = self._pipeline.add_request(self._asked, np.array([ids], dtype=np.int64) + first, config)
        self._asked += 1
        steps, said = 0, list[int]()
        while handle.get_status().name == "RUNNING":
            self._pipeline.step()
            steps += not said
            while handle.can_read():
                said += [token - first for output in handle.read().values() for token in output.generated_ids]
        return steps, said


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    cache = tmp_path_factory.mktemp("cache")
    base = prepare_llama(cache, context_tokens=1024)
    loras = [write_lora(cache / f"{n}", cache / "random.gguf", size=0.3, seed=n) for n in (1, 2)]
    stack = prepare_stack(base, [adapter_in(lora) for lora in loras], progress=False)
    return lambda: Counted(stack)


def test_what_stands_in_front_of_another_question_is_read_once(fresh: Fresh) -> None:
    model = fresh()
    assert model.answer(READ + QUESTION, 1)[0] == len(READ) // STEP_TOKENS + 1
    assert model.answer(READ + OTHER, 1)[0] == 1
    assert model.answer(OTHER + READ, 1)[0] == len(READ) // STEP_TOKENS + 1  # what stands behind it is not


def test_what_was_read_once_is_as_good_as_what_is_read_anew(fresh: Fresh) -> None:
    model = fresh()
    _, first = model.answer(READ + QUESTION, 1)
    _, again = model.answer(READ + QUESTION, 1)
    _, other = model.answer(READ + OTHER, 1)
    assert again == first
    assert other == fresh().answer(READ + OTHER, 1)[1]


def test_what_one_adapter_has_read_is_never_given_to_another_or_to_the_base(fresh: Fresh) -> None:
    model = fresh()
    said = []
    for slot in (1, 2, 0):
        steps, answer = model.answer(READ + QUESTION, slot)
        assert steps == len(READ) // STEP_TOKENS + 1
        assert answer == fresh().answer(READ + QUESTION, slot)[1]
        said.append(answer)
    assert len(set(map(tuple, said))) == len(said)  # else the adapters would change nothing


def test_a_larger_model_takes_smaller_steps_and_more_threads_take_larger_ones() -> None:
    sizes = [10**exponent for exponent in range(4, 12)]
    by_size = [usual_step_tokens(size, threads=4) for size in sizes]
    assert by_size == sorted(by_size, reverse=True)
    assert by_size[0] == MOST_TOKENS > by_size[-1]
    by_threads = [usual_step_tokens(500_000_000, threads) for threads in range(1, 33)]
    assert by_threads == sorted(by_threads)


@pytest.mark.parametrize("threads", [1, 2, 8, 64])
def test_however_many_answer_there_is_room_for_a_prompt(threads: int) -> None:
    assert usual_step_tokens(70 * 10**9, threads) >= 2 * threads * ANSWERS_A_THREAD
