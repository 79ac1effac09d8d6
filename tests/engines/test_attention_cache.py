"""What a pipeline holds: an attention cache of the size asked for, and kernels up to a number."""

from __future__ import annotations

import os
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_gguf import prepare_llama

from expert_router.engines.attention_cache import blocks_within
from expert_router.engines.batching import start_pipeline
from expert_router.engines.prepared import GRAPH
from processes import children_of, told_of

if TYPE_CHECKING:
    from pathlib import Path

    from expert_router.engines.prepared import PreparedModel


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepare_llama(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("half", [False, True])
def test_a_pipeline_with_so_many_blocks_holds_no_more_than_asked_and_nearly_all_of_it(
    tiny: PreparedModel, half: bool
) -> None:
    import openvino as ov
    import openvino_genai as genai

    asked = 1_000_000
    config = genai.SchedulerConfig()
    blocks = blocks_within(asked, tiny.folder / GRAPH, half=half)
    assert blocks is not None
    config.num_kv_blocks = blocks
    device = {"INFERENCE_NUM_THREADS": 1, **({"KV_CACHE_PRECISION": "f16"} if half else {})}
    pipeline = genai.ContinuousBatchingPipeline(str(tiny.folder), config, "CPU", device)
    ends = genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, eos_token_id=0)
    handle = pipeline.add_request(0, ov.Tensor(np.array([[5, 6, 7]], dtype=np.int64)), ends)
    while pipeline.has_non_finished_requests():
        pipeline.step()
    reserved = pipeline.get_metrics().kv_cache_size_in_bytes
    del handle
    assert asked * 0.98 < reserved <= asked


def test_there_is_always_room_for_a_block_of_what_is_known(tmp_path: Path, tiny: PreparedModel) -> None:
    assert blocks_within(1, tiny.folder / GRAPH, half=False) == 1
    (tmp_path / "unlike.xml").write_text("<net/>")
    assert blocks_within(10**9, tmp_path / "unlike.xml", half=False) is None


async def test_a_pipeline_drops_kernels_of_sizes_that_nobody_asks_for_any_more(tiny: PreparedModel) -> None:
    """Each size has some 1.5 MB of them: the last fifty, if all were kept, 75."""
    device = {"INFERENCE_NUM_THREADS": 1}
    others = children_of(os.getpid())
    batcher = start_pipeline("tiny", tiny.folder, {"num_kv_blocks": 64}, device, step_timeout_s=60)
    held = []
    try:
        (pid,) = children_of(os.getpid()) - others
        for tokens in range(1, 201):
            prompt = np.full((1, tokens), 5, dtype=np.int64)
            async with aclosing(batcher.generate(prompt, {"max_new_tokens": 1, "eos_token_id": 0})) as batches:
                assert [batch.finish_reason async for batch in batches][-1] is not None
            held.append(anonymous_bytes(pid))
    finally:
        batcher.close()
    assert held[150] > held[0]
    assert held[199] - held[150] < 25 * 1024**2


def anonymous_bytes(pid: int) -> int:
    found = re.search(r"Anonymous: +(\d+)", told_of(pid, "smaps_rollup"))
    assert found is not None
    return int(found[1]) * 1024
