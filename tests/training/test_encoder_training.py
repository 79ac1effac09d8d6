"""Fine-tuning the encoder, on a BERT of one random layer: what it learns, and what it must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from expert_router.data.intents import IntentData
from expert_router.data.labelled import LabelledQuestion
from expert_router.training.reading import Reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer

    from expert_router.training.encoder import RoutingEncoder

pytestmark = pytest.mark.train

EXPERTS = ["sleep", "cars"]
FIELDS = {"sleep": "dream night bed nap", "cars": "wheel motor road gear", "": "rain river stone bread"}
COLOURS = {"red": "rose ruby blood", "blue": "sky sea ink", "green": "grass leaf moss"}
WORDS = " ".join([*FIELDS.values(), *COLOURS.values()]).split()


def question(*words: str, experts: str = "") -> LabelledQuestion:
    return LabelledQuestion(" ".join(words), frozenset(experts.split()), "any")


QUESTIONS = [
    question(one, other, experts=field)
    for field, words in FIELDS.items()
    for one in words.split()
    for other in words.split()
]
PASSAGES = [question(words, experts=field) for field, words in FIELDS.items() if field]
ROWS = [(f"{one} {other}", name) for name, words in COLOURS.items() for one in words.split() for other in words.split()]
INTENTS = IntentData("colours", ROWS * 8, [], [], [], "0" * 64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 1,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config.to_json_file(folder / "config.json")
    weights = {f"bert.{k}": v for k, v in BertModel(config, add_pooling_layer=False).state_dict().items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["?", *WORDS])}, unk_token="?"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def trained(
    base: Path,
    tokenizer: Tokenizer,
    *intents: IntentData,
    start: Path | None = None,
    readings: Sequence[Reading] = (),
    **how: Any,
) -> Any:
    from expert_router.training.encoder import EncoderTraining, train_encoder

    training = EncoderTraining(**{"batch_size": 8, "pairs": 16, "epochs": 12, "learning_rate": 3e-3} | how)
    return train_encoder(
        base,
        tokenizer,
        QUESTIONS,
        PASSAGES,
        experts=EXPERTS,
        training=training,
        device="cpu",
        readings=readings,
        intents=intents,
        start=start,
    )


def asked(model: RoutingEncoder, tokenizer: Tokenizer, head: str, text: str) -> torch.Tensor:
    import torch

    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        return model.logits(head, model(ids, torch.ones_like(ids)))[0]


def moved(model: RoutingEncoder, base: Path, tokenizer: Tokenizer) -> float:
    """The mean cosine distance of the questions' embeddings to the untrained ones."""
    import torch

    from expert_router.training.encoder import load_bert, mean_pooled

    untrained = load_bert(base).eval()
    distances = []
    with torch.no_grad():
        for item in QUESTIONS:
            ids = torch.tensor([tokenizer.encode(item.query).ids])
            pair = [mean_pooled(bert, ids, torch.ones_like(ids)) for bert in (model.bert, untrained)]
            distances.append(1 - float(torch.cosine_similarity(*pair)))
    return sum(distances) / len(distances)


def test_it_learns_the_experts_and_the_intents_each_by_its_own_head(base: Path, tokenizer: Tokenizer) -> None:
    from expert_router.training.encoder import OWN

    model = trained(base, tokenizer, INTENTS)
    assert set(model.heads) == {OWN, "colours"}
    for text, needed in (("dream nap", [True, False]), ("road wheel", [False, True]), ("rain bread", [False, False])):
        assert (asked(model, tokenizer, OWN, text) > 0).tolist() == needed
    for text, intent in (("ruby rose", "red"), ("ink sea", "blue"), ("moss leaf", "green")):
        assert INTENTS.intents[int(asked(model, tokenizer, "colours", text).argmax())] == intent


def test_a_question_comes_closer_to_what_answers_it_than_to_what_does_not(base: Path, tokenizer: Tokenizer) -> None:
    import torch

    answers = {"red": "rose ruby", "blue": "sky sea", "green": "grass leaf"}
    asks = {"red": "stone bread", "blue": "river rain", "green": "bread river"}
    readings = [Reading(asks[name], (text,), text, alike=tuple(answers.values())) for name, text in answers.items()] * 8

    def found(model: RoutingEncoder) -> list[str]:
        texts = [*asks.values(), *answers.values()]
        with torch.no_grad():
            rows = [torch.tensor([tokenizer.encode(text).ids]) for text in texts]
            vectors = torch.cat([model(ids, torch.ones_like(ids)) for ids in rows])
        vectors = torch.nn.functional.normalize(vectors, dim=1)
        return [list(answers)[int(n)] for n in (vectors[:3] @ vectors[3:].T).argmax(dim=1)]

    how = {"reading_batch_size": 6, "reading_weight": 1.0, "anchor_weight": 0.0}
    assert found(trained(base, tokenizer, readings=readings, **how)) == list(answers)
    assert found(trained(base, tokenizer, **how)) != list(answers)


def test_the_word_embeddings_stay_as_they_are_and_the_layers_do_not(base: Path, tokenizer: Tokenizer) -> None:
    import torch

    from expert_router.training.encoder import load_bert

    before, after = load_bert(base).state_dict(), trained(base, tokenizer, INTENTS, epochs=2).bert.state_dict()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if name.startswith("embeddings.")}


def test_the_anchor_keeps_the_embeddings_where_they_were(base: Path, tokenizer: Tokenizer) -> None:
    free, held = (moved(trained(base, tokenizer, INTENTS, anchor_weight=w), base, tokenizer) for w in (0.0, 10.0))
    assert held < free / 4


def test_the_same_arguments_give_the_same_encoder(base: Path, tokenizer: Tokenizer) -> None:
    import torch

    one, other = (trained(base, tokenizer, INTENTS, epochs=2).state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    another = trained(base, tokenizer, INTENTS, epochs=2, seed=1).state_dict()
    assert not all(torch.equal(value, another[name]) for name, value in one.items())


def test_a_run_goes_on_from_the_weights_that_another_saved(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from expert_router.training.encoder import OWN, save_weights

    saved = tmp_path / "weights.pt"
    save_weights(trained(base, tokenizer), saved)
    model = trained(base, tokenizer, start=saved, epochs=1, learning_rate=0.0)
    assert (asked(model, tokenizer, OWN, "dream nap") > 0).tolist() == [True, False]


def test_a_base_without_all_its_weights_is_refused(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights.pop("bert.encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"output\.dense\.weight"):
        trained(tmp_path, tokenizer)
