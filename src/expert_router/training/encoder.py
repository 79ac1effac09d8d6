"""Teach the sentence encoder the experts' fields: fine-tune MiniLM on the routing questions and on what they read.

The losses: binary cross-entropy of a linear head over the experts (one independent probability each); a question's
closeness to the text that answers it, among texts that do not (InfoNCE; van den Oord et al., 2018), as retrieval uses
the same vectors; and the cosine distance to the untrained encoder's embedding, which keeps what it knows of the rest of
the world: without it the encoder learns our questions and forgets how others ask (docs/log.md). Public intent data sets
may be learnt beside, each with a head of its own, so that many subjects can be told apart by the same vectors. The word
embeddings stay frozen, so that the exported file shares them with the base model's file and is half its size.

Needs torch and transformers: pip install 'expert-router[train]'. A minute on a GPU; many on a CPU.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import BertConfig, BertModel

from expert_router.training.augment import joined_pairs, reworded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from expert_router.data.intents import IntentData
    from expert_router.data.labelled import LabelledQuestion
    from expert_router.training.reading import Reading

T = TypeVar("T")

WARM_UP_SHARE = 0.1
HEAD_LEARNING_RATE = 5e-3
OWN = "experts"
"""The name of the experts' own head among those of the intent data sets."""
INTENT_BATCH_SIZE = 64
COSINE_SCALE = 20.0
AS_WRITTEN_SHARE = 0.5
READING_TEMPERATURE = 0.05
READING_TOKENS = 160
"""A passage is embedded up to here while it is learnt."""
REWORDED_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class EncoderTraining:
    """How to train; the defaults are the shipped encoder's.

    ``batch_size`` is of the experts' own questions, ``reading_batch_size`` of those that are read for;
    ``anchor_weight`` weighs the distance to the untrained embedding, ``reading_weight`` how close a question is to what
    answers it; ``passage_share`` is the share of the passages read in an epoch, ``pairs`` the number of joined
    questions.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-4
    anchor_weight: float = 0.3
    reading_batch_size: int = 48
    reading_weight: float = 0.5
    passage_share: float = 0.5
    pairs: int = 800
    seed: int = 0

    def about(self) -> dict[str, float]:
        return asdict(self)


class CosineHead(nn.Module):
    """Logits (N, I) that are scaled cosines: a class is a direction, whatever its length."""

    def __init__(self, width: int, intents: int) -> None:
        super().__init__()
        self.directions_ID = nn.Parameter(torch.randn(intents, width) * 0.05)

    def forward(self, pooled_ND: torch.Tensor) -> torch.Tensor:
        return COSINE_SCALE * functional.normalize(pooled_ND, dim=1) @ functional.normalize(self.directions_ID, dim=1).T


class RoutingEncoder(nn.Module):
    """MiniLM, a linear head over the experts and a cosine head for each intent data set, by its name."""

    def __init__(self, bert: BertModel, experts: int, intents: Mapping[str, int]) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = nn.Dropout(0.1)
        width = bert.config.hidden_size
        own = nn.Linear(width, experts)
        nn.init.normal_(own.weight, std=0.02)
        self.heads = nn.ModuleDict({OWN: own, **{name: CosineHead(width, count) for name, count in intents.items()}})
        for parameter in bert.embeddings.parameters():
            parameter.requires_grad = False

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The embeddings (N, D), not normalised."""
        return mean_pooled(self.bert, input_ids, mask)

    def logits(self, head: str, pooled_ND: torch.Tensor) -> torch.Tensor:
        return self.heads[head](self.dropout(pooled_ND))


@dataclass(frozen=True, slots=True)
class _Labelled:
    """``targets`` are of shape (N, E) for the experts' head, and class numbers (N,) for another."""

    head: str
    texts: list[str]
    targets: torch.Tensor

    def loss(self, model: RoutingEncoder, pooled_ND: torch.Tensor) -> torch.Tensor:
        logits, targets = model.logits(self.head, pooled_ND), self.targets.to(pooled_ND.device)
        if self.head == OWN:
            return functional.binary_cross_entropy_with_logits(logits, targets)
        return functional.cross_entropy(logits, targets)


@dataclass(frozen=True, slots=True)
class _Read:
    """``texts`` are N questions, the text that answers each, and others; ``ignored_NM`` are no negatives."""

    texts: list[str]
    ignored_NM: torch.Tensor
    weight: float

    def loss(self, model: RoutingEncoder, pooled_ND: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - as _Labelled
        count = len(self.ignored_NM)
        vectors_ND = functional.normalize(pooled_ND, dim=1)
        cosines_NM = vectors_ND[:count] @ vectors_ND[count:].T / READING_TEMPERATURE
        candidates_NM = cosines_NM.masked_fill(self.ignored_NM.to(cosines_NM.device), -torch.inf)
        return self.weight * functional.cross_entropy(candidates_NM, torch.arange(count, device=cosines_NM.device))


def load_bert(folder: Path) -> BertModel:
    """The fp32 base encoder from ``config.json`` and ``model.safetensors``."""
    bert = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    weights = {
        name.removeprefix("bert."): value.float() for name, value in load_file(folder / "model.safetensors").items()
    }
    missing = bert.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(f"{folder} lacks the weights {missing}")
    return bert


def save_weights(model: RoutingEncoder, path: Path) -> None:
    """Everything a later run needs to go on: tensors only."""
    torch.save(model.state_dict(), path)


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def mean_pooled(bert: BertModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    hidden_NTD = bert(input_ids, attention_mask=attention_mask).last_hidden_state
    mask_NT1 = attention_mask[..., None].to(hidden_NTD.dtype)
    return (hidden_NTD * mask_NT1).sum(1) / mask_NT1.sum(1)


def train_encoder(
    base: Path,
    tokenizer: Tokenizer,
    questions: Sequence[LabelledQuestion],
    passages: Sequence[LabelledQuestion],
    *,
    experts: Sequence[str],
    training: EncoderTraining,
    device: str,
    readings: Sequence[Reading] = (),
    intents: Sequence[IntentData] = (),
    start: Path | None = None,
    progress: bool = False,
) -> RoutingEncoder:
    """Fine-tune a copy of the encoder in ``base``; ``passages`` are texts of an expert's field, its answers say.

    Of ``intents`` only the training questions are read. ``start`` goes on from weights that ``save_weights`` wrote.
    Deterministic on one device for the same arguments.
    """
    torch.manual_seed(training.seed)
    rng = random.Random(training.seed)  # noqa: S311 - reproducible, not secret
    counts = {data.name: len(data.intents) for data in intents}
    model = RoutingEncoder(load_bert(base), len(experts), counts).to(device).train()
    if start is not None:
        model.load_state_dict(torch.load(start, map_location=device, weights_only=True))
    anchor = load_bert(base).to(device).eval()
    epochs = (
        _epoch(questions, passages, readings, intents, experts, training=training, rng=rng, number=n)
        for n in range(training.epochs)
    )
    first = next(epochs)
    steps = training.epochs * len(first)
    optimizer = _optimizer(model, training)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_linear(step, steps))
    with tqdm(total=steps, desc="train encoder", unit="step", disable=None if progress else True) as bar:
        for batch in chain(first, chain.from_iterable(epochs)):
            ids, mask = _padded([tokenizer.encode(text).ids[:READING_TOKENS] for text in batch.texts], device)
            pooled = model(ids, mask)
            with torch.no_grad():
                untrained = mean_pooled(anchor, ids, mask)
            distance = (1 - functional.cosine_similarity(pooled, untrained)).mean()
            loss = batch.loss(model, pooled) + training.anchor_weight * distance
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()
    return model


def _epoch(
    questions: Sequence[LabelledQuestion],
    passages: Sequence[LabelledQuestion],
    readings: Sequence[Reading],
    intents: Sequence[IntentData],
    experts: Sequence[str],
    *,
    training: EncoderTraining,
    rng: random.Random,
    number: int,
) -> list[_Labelled | _Read]:
    """Shuffled batches, as many every time: all questions, some passages, pairs joined anew, and the rest whole."""
    items = [*questions, *joined_pairs(questions, training.pairs, training.seed * 1000 + number)]
    items += rng.sample(list(passages), round(len(passages) * training.passage_share))
    rng.shuffle(items)
    batches: list[_Labelled | _Read] = [
        _Labelled(
            OWN,
            [reworded(item.query, rng) for item in batch],
            torch.tensor([[float(expert in item.experts) for expert in experts] for item in batch]),
        )
        for batch in _whole_batches(items, training.batch_size)
    ]
    for data in intents:
        batches += _intent_batches(data, rng)
    batches += [
        _reading_batch(batch, training.reading_weight, rng)
        for batch in _whole_batches(rng.sample(list(readings), len(readings)), training.reading_batch_size)
    ]
    rng.shuffle(batches)
    return batches


def _intent_batches(data: IntentData, rng: random.Random) -> list[_Labelled]:
    number_of = {intent: n for n, intent in enumerate(data.intents)}
    return [
        _Labelled(
            data.name,
            [text if rng.random() < AS_WRITTEN_SHARE else reworded(text, rng) for text, _ in batch],
            torch.tensor([number_of[intent] for _, intent in batch]),
        )
        for batch in _whole_batches(rng.sample(data.train, len(data.train)), INTENT_BATCH_SIZE)
    ]


def _reading_batch(readings: Sequence[Reading], weight: float, rng: random.Random) -> _Read:
    """Every text of the batch is a negative for the questions that it does not answer."""
    questions = [reworded(r.question, rng) if rng.random() < REWORDED_SHARE else r.question for r in readings]
    texts = [reading.positive(rng) for reading in readings]
    texts += [text for reading in readings for text in reading.negatives(rng)]
    ignored = [
        [text in reading.own and n != own for n, text in enumerate(texts)] for own, reading in enumerate(readings)
    ]
    return _Read(questions + texts, torch.tensor(ignored), weight)


def _whole_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items) - size + 1, size)]


def _optimizer(model: RoutingEncoder, training: EncoderTraining) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": trained, "lr": training.learning_rate},
        {"params": model.heads.parameters(), "lr": HEAD_LEARNING_RATE},
    ]
    return torch.optim.AdamW(groups, weight_decay=0.01)


def _warm_up_then_linear(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (WARM_UP_SHARE * steps)) * max(0.0, 1 - step / steps)


def _padded(ids: list[list[int]], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes (N, T): token ids and the mask of real tokens."""
    longest = max(len(row) for row in ids)
    padded_NT = np.zeros((len(ids), longest), dtype=np.int64)
    mask_NT = np.zeros((len(ids), longest), dtype=np.int64)
    for n, row in enumerate(ids):
        padded_NT[n, : len(row)] = row
        mask_NT[n, : len(row)] = 1
    return torch.from_numpy(padded_NT).to(device), torch.from_numpy(mask_NT).to(device)
