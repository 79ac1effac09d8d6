from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from expert_router.artifacts import load_experts
from expert_router.engines.adapter import read_lora
from expert_router.engines.openvino import adapter_canary
from expert_router.errors import ConfigError
from expert_router.evaluation.load import with_copies
from support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

BASE = "smollm2-135m-instruct"


def test_copies_have_names_and_files_of_their_own_and_what_their_model_can_do(tmp_path: Path) -> None:
    shipped = load_experts(ROOT / "experts", ROOT)
    first, second = shipped
    copied = with_copies(shipped, BASE, 5, tmp_path)
    assert list(copied) == [first, second, f"{first}-2", f"{second}-2", f"{first}-3"]
    assert len({expert.adapters[BASE].sha256 for expert in copied.values()}) == 5
    model, copy = shipped[first].adapters[BASE], copied[f"{first}-3"].adapters[BASE]
    assert adapter_canary(copy) == adapter_canary(model)  # its files are those of its manifest
    assert read_lora(copy.path).modules.keys() == read_lora(model.path).modules.keys()
    assert with_copies(shipped, BASE, 5, tmp_path / "again")[f"{first}-3"].adapters[BASE].sha256 == copy.sha256
    with pytest.raises(ConfigError, match="No expert has an adapter for absent"):
        with_copies(shipped, "absent", 2, tmp_path)
