"""What the values that cross boundaries promise beyond holding data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from expert_router.errors import NotReadyError
from expert_router.types import Adapter, Expert, ModelVariant

SMALL, LARGE = Adapter(Path("small"), "5" * 64), Adapter(Path("large"), "1" * 64)


def expert(**adapters: Adapter) -> Expert:
    return Expert("sleep", "Sleep science", "", "", adapters=adapters)


def test_an_expert_without_any_adapter_is_the_base_model_whichever_it_is() -> None:
    assert expert().adapter_for("small") is None
    assert expert().adapter_for("anything") is None


def test_an_expert_answers_with_the_adapter_of_the_base_in_use() -> None:
    assert expert(small=SMALL, large=LARGE).adapter_for("small") == SMALL
    assert expert(small=SMALL, large=LARGE).adapter_for("large") == LARGE


def test_an_expert_with_adapters_for_other_bases_alone_is_refused_and_never_the_bare_base() -> None:
    with pytest.raises(NotReadyError) as caught:
        expert(small=SMALL, large=LARGE).adapter_for("huge")
    assert "'sleep' has adapters for small, large, but none for the base model huge" in caught.value.message
    assert "expert-router train expert sleep" in caught.value.message
    assert "take [adapters] out of its manifest" in caught.value.message
    assert caught.value.status == 503


def test_the_embedded_engine_serves_what_a_base_is_to_be_served_as_and_the_others_as_they_are() -> None:
    chosen = replace(expert(small=SMALL, large=LARGE), serve_as={"large": ModelVariant("small", "q4_0")})
    assert chosen.embedded_on("large") == ("small", replace(SMALL, quantization="q4_0"))
    assert chosen.embedded_on("small") == ("small", SMALL)
    assert chosen.adapter_for("large") == LARGE  # another engine knows nothing of it
    assert expert().embedded_on("large") == ("large", None)
