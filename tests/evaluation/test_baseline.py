"""The original's design, small: a base of random weights, a router of BART's shape with hardly any."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tiny_gguf import write_llama

from expert_router.errors import TrainingError
from expert_router.evaluation.baseline import OriginalSetup, original
from support import EXPERTS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.train
SIDES = ("encoder", "decoder")
SMALL_BART = {
    "d_model": 16,
    **{f"{side}_{what}": size for side in SIDES for what, size in (("layers", 1), ("ffn_dim", 16))},
    **{f"{side}_attention_heads": 2 for side in SIDES},
}


def test_it_routes_and_answers_in_exactly_so_many_tokens_and_what_fails_is_said(tmp_path: Path) -> None:
    base = tmp_path / "tiny.gguf"
    write_llama(base, context_tokens=4096)
    setup = OriginalSetup(base, "tiny", tuple(EXPERTS.values()), tokens=9, threads=1, bart=SMALL_BART)
    with original(setup) as ask:
        answers = [ask(question) for question in ("What is REM sleep?", "Who built the first car?")]
    for answer in answers:
        assert (answer.expert in EXPERTS, answer.tokens) == (True, 9)
        assert 0 < answer.route_s < answer.seconds
        assert answer.peak_bytes > 10e6
    with pytest.raises(TrainingError, match="nowhere"), original(replace(setup, base=tmp_path / "nowhere.gguf")):
        pass
