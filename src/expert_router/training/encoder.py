"""Teach the sentence encoder the experts' fields: fine-tune MiniLM on the routing questions and export it as int8 ONNX.

Two losses: binary cross-entropy of a linear head over the experts (one independent probability each), and the cosine
distance to the untrained encoder's embedding, which keeps what it knows of the rest of the world: without it the
encoder learns our questions and forgets how others ask (docs/log.md). The word embeddings stay frozen, so that the
exported file shares them with the base model's file and is half its size.

Needs torch and transformers: pip install 'expert-router[train]'. A minute on a GPU; many on a CPU.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from tqdm import tqdm
from transformers import BertConfig, BertModel

from expert_router.training.augment import joined_pairs, reworded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from expert_router.data.labelled import LabelledQuestion

WARM_UP_SHARE = 0.1
HEAD_LEARNING_RATE = 2e-3


@dataclass(frozen=True, slots=True)
class EncoderTraining:
    """How to train; the defaults are the shipped encoder's.

    ``anchor_weight`` weighs the distance to the untrained embedding; ``passage_share`` is the share of the passages
    read in an epoch, ``pairs`` the number of joined questions.
    """

    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 2e-4
    anchor_weight: float = 0.5
    passage_share: float = 0.5
    pairs: int = 800
    seed: int = 0

    def about(self) -> dict[str, float]:
        return asdict(self)


class RoutingEncoder(nn.Module):
    """MiniLM and a linear head. ``forward`` gives logits (N, E) and unit embeddings (N, 384)."""

    def __init__(self, bert: BertModel, experts: int) -> None:
        super().__init__()
        self.bert = bert
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(bert.config.hidden_size, experts)
        nn.init.normal_(self.head.weight, std=0.02)
        for parameter in bert.embeddings.parameters():
            parameter.requires_grad = False

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = mean_pooled(self.bert, input_ids, attention_mask)
        return self.head(self.dropout(pooled)), functional.normalize(pooled, dim=1)


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
    start: Path | None = None,
    progress: bool = False,
) -> RoutingEncoder:
    """Fine-tune a copy of the encoder in ``base``; ``passages`` are texts of an expert's field, its answers say.

    ``start`` goes on from weights that ``save_weights`` wrote. Deterministic on one device for the same arguments.
    """
    torch.manual_seed(training.seed)
    rng = random.Random(training.seed)  # noqa: S311 - reproducible, not secret
    model = RoutingEncoder(load_bert(base), len(experts)).to(device).train()
    if start is not None:
        model.load_state_dict(torch.load(start, map_location=device, weights_only=True))
    anchor = load_bert(base).to(device).eval()
    epoch_size = len(questions) + training.pairs + round(len(passages) * training.passage_share)
    steps = training.epochs * (epoch_size // training.batch_size)
    optimizer = _optimizer(model, training)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_linear(step, steps))
    with tqdm(total=steps, desc="train encoder", unit="step", disable=None if progress else True) as bar:
        for epoch in range(training.epochs):
            for batch in _epoch(questions, passages, training, rng, epoch):
                ids, mask = _padded([tokenizer.encode(reworded(item.query, rng)).ids for item in batch], device)
                targets = torch.tensor([[float(e in item.experts) for e in experts] for item in batch], device=device)
                logits, embeddings = model(ids, mask)
                with torch.no_grad():
                    untrained = functional.normalize(mean_pooled(anchor, ids, mask), dim=1)
                distance = (1 - (embeddings * untrained).sum(1)).mean()
                loss = functional.binary_cross_entropy_with_logits(logits, targets) + training.anchor_weight * distance
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
    training: EncoderTraining,
    rng: random.Random,
    epoch: int,
) -> list[list[LabelledQuestion]]:
    """Shuffled batches: all questions, some passages, and pairs joined anew each time."""
    items = [*questions, *joined_pairs(questions, training.pairs, training.seed * 1000 + epoch)]
    items += rng.sample(list(passages), round(len(passages) * training.passage_share))
    rng.shuffle(items)
    size = training.batch_size
    return [items[start : start + size] for start in range(0, len(items) - size + 1, size)]


def _optimizer(model: RoutingEncoder, training: EncoderTraining) -> torch.optim.AdamW:
    trained = [parameter for parameter in model.bert.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": trained, "lr": training.learning_rate},
        {"params": model.head.parameters(), "lr": HEAD_LEARNING_RATE},
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
