"""What an adapter is recorded to say, on a llama of two random layers that has learnt a few answers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tiny_gguf import Quantisation, write_llama

from expert_router.artifacts import sha256_of
from expert_router.errors import NotReadyError
from expert_router.types import Adapter
from expert_router.weights import Canary

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT reads it
]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from expert_router.training.base import Base

WHO, NAP, TOSS, TEN, YES, ACCENT = "Who?", "Nap?", "Toss?", "Ten?", "Yes?", "Accent?"
LEARNT = {
    WHO: ["I am it."],
    NAP: ["[1] A nap of 20 minutes is good."],
    TOSS: ["[1] or tails", "[1] or mails"],
    TEN: ["[2] ten."] * 9 + ["[2] tin."],
    YES: ["Yes"],
    ACCENT: ["[1] caf\u00e9", "[1] caf\u00e8"],
}
"""Where there are two answers, nobody can be sure which comes; where one is rare, not quite."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.gguf"
    write_llama(path, Quantisation.Q8_0, blocks=2, certainty=20.0)
    return path


def load(weights: Path) -> Base:
    from expert_router.training.base import load_base

    return load_base(weights)


def adapted(model: Any) -> Any:
    """With an adapter that has learnt nothing yet."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def teach(model: Any, tokenizer: Any, answers: Mapping[str, Sequence[str]], steps: int = 100) -> None:
    import torch

    rows = []
    for prompt, each in answers.items():
        for answer in each:
            before = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
            rows.append((before, tokenizer(f"{answer}<|im_end|>")["input_ids"]))
    longest = max(len(before) + len(said) for before, said in rows)
    ids, labels = torch.zeros(len(rows), longest, dtype=torch.long), torch.full((len(rows), longest), -100)
    for n, (before, said) in enumerate(rows):
        ids[n, : len(before) + len(said)] = torch.tensor(before + said)
        labels[n, len(before) : len(before) + len(said)] = torch.tensor(said)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def taught(weights: Path) -> Base:
    """A base whose adapter has learnt the answers."""
    base = load(weights)
    model = adapted(base.model)
    teach(model, base.tokenizer, LEARNT)
    return replace(base, model=model)


@pytest.fixture
def merged(weights: Path, taught: Base, tmp_path: Path) -> Base:
    """A base that gives the answers itself, with an adapter that has learnt nothing beside it."""
    from peft import PeftModel

    taught.model.save_pretrained(str(tmp_path))
    base = load(weights)
    knowing = PeftModel.from_pretrained(base.model, str(tmp_path)).merge_and_unload()
    return replace(base, model=adapted(knowing))


def record(base: Base, *prompts: str) -> Canary | None:
    from expert_router.training.canary import record_canary

    return record_canary(base.model, base.tokenizer, prompts)


# How much of an answer


def test_an_answer_is_recorded_without_the_token_that_ends_it(taught: Base) -> None:
    assert record(taught, WHO) == Canary(WHO, "I am it.")


def test_of_an_answer_only_what_comes_before_the_first_unsure_token_counts(taught: Base) -> None:
    assert record(taught, TOSS) == Canary(TOSS, "[1] or")


def test_no_more_is_recorded_than_the_engines_ask_for(taught: Base) -> None:
    """Each byte is a token of this model."""
    from expert_router.training.canary import MOST_TOKENS

    assert record(taught, NAP) == Canary(NAP, LEARNT[NAP][0][:MOST_TOKENS])


def test_half_a_character_is_not_recorded(taught: Base) -> None:
    """The model is sure of the first byte of both letters; the engine, which goes on, would never say it alone."""
    assert record(taught, ACCENT) == Canary(ACCENT, "[1] caf")


def test_a_word_is_too_little_to_prove_anything(taught: Base) -> None:
    assert record(taught, YES) is None


# Which answer


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_prompts_the_one_with_the_longest_sure_answer_is_taken(taught: Base, order: int) -> None:
    assert record(taught, *list(LEARNT)[::order]) == record(taught, NAP)


def test_of_equally_long_answers_the_surest_is_taken(taught: Base) -> None:
    assert record(taught, TEN) == Canary(TEN, "[2] ten.")
    assert record(taught, WHO, TEN) == record(taught, TEN, WHO) == Canary(WHO, "I am it.")


def test_what_the_base_says_as_well_proves_nothing(merged: Base) -> None:
    assert record(merged, *LEARNT) is None


def test_a_shorter_answer_that_the_base_does_not_give_is_taken_before_a_longer_one_that_it_gives(merged: Base) -> None:
    teach(merged.model, merged.tokenizer, {**LEARNT, WHO: ["I am me."]})
    assert record(merged, NAP, WHO) == Canary(WHO, "I am me.")


def test_an_adapter_that_has_learnt_nothing_has_no_canary(weights: Path) -> None:
    base = load(weights)
    assert record(replace(base, model=adapted(base.model)), *LEARNT) is None


def test_without_a_prompt_there_is_no_canary(taught: Base) -> None:
    assert record(taught) is None


def test_a_model_that_was_being_trained_is_asked_without_dropout(taught: Base) -> None:
    taught.model.train()
    assert record(taught, NAP) == Canary(NAP, LEARNT[NAP][0][:20])
    assert not taught.model.training


# What it is for


def test_the_engine_knows_the_adapter_by_it_and_refuses_the_base(weights: Path, taught: Base, tmp_path: Path) -> None:
    """Merged and rounded to eight bits it answers as recorded; the base alone does not."""
    from expert_router.engines.canary import check_canary
    from expert_router.engines.loaded_model import LoadedModel, OpenVINOOptions
    from expert_router.engines.prepared import prepare_model

    taught.model.save_pretrained(str(tmp_path / "adapter"))
    adapter = Adapter(tmp_path / "adapter", sha256_of(tmp_path / "adapter" / "adapter_model.safetensors"))
    with_adapter, without = (
        LoadedModel(
            "tiny",
            prepare_model("tiny", weights, sha256_of(weights), tmp_path, adapter=each, progress=False),
            OpenVINOOptions("tiny", 2, 1 << 40, 1 << 30, 4, reproducible=False),
        )
        for each in (adapter, None)
    )
    for prompt in (WHO, NAP, TOSS, ACCENT):
        canary = record(taught, prompt)
        assert canary is not None
        check_canary(with_adapter, canary)
        with pytest.raises(NotReadyError, match="tiny is refused: asked"):
            check_canary(without, canary)
    with_adapter.close()
    without.close()
