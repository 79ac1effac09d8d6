"""The baseline to beat: zero-shot classification by an entailment model (Yin et al. 2019), BART-large-mnli by default.

Each expert's description is a hypothesis; its probability of being entailed by the question, against contradicted, is
the score (Lewis et al. 2020 for BART). An extra install: pip install 'expert-router[zero-shot]'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expert_router.errors import ConfigError
from expert_router.types import Scores, Thresholds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HYPOTHESIS = "This question is about {}."


class ZeroShotRouter:
    """``topics`` gives each expert the words of its hypothesis; ``model`` is a hub name or a local folder."""

    name = version = "zero_shot"
    thresholds = Thresholds(accept=0.5, clarify=0.4)

    def __init__(self, topics: Mapping[str, str], model: str, token: str | None, threads: int) -> None:
        self.experts = tuple(topics)
        self._hypotheses = [HYPOTHESIS.format(topic) for topic in topics.values()]
        self._torch, self._tokenizer, self._model = _load(model, token, threads)
        labels = {label.lower(): index for index, label in self._model.config.id2label.items()}
        if not {"entailment", "contradiction"} <= labels.keys():
            raise ConfigError(f"{model} is not an entailment model: its labels are {sorted(labels)}.")
        self._columns = [labels["contradiction"], labels["entailment"]]

    def score(self, query: str, history: Sequence[str] = ()) -> Scores:  # noqa: ARG002 - reads the question alone
        inputs = self._tokenizer(
            [query] * len(self._hypotheses),
            self._hypotheses,
            return_tensors="pt",
            padding=True,
            truncation="only_first",
        )
        with self._torch.inference_mode():
            logits_E2 = self._model(**inputs).logits[:, self._columns]
        entailed_E = logits_E2.softmax(dim=1)[:, 1].tolist()
        return Scores(dict(zip(self.experts, entailed_E, strict=True)), 1.0 - max(entailed_E))

    def close(self) -> None:
        """Nothing is held beyond memory."""


def _load(model: str, token: str | None, threads: int) -> tuple[Any, Any, Any]:
    try:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            "The zero_shot router needs torch and transformers: pip install 'expert-router[zero-shot]'."
        ) from error
    torch.set_num_threads(threads)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, token=token)
        network = AutoModelForSequenceClassification.from_pretrained(model, token=token, use_safetensors=True)
    except Exception as error:  # a damaged weights file is an error of safetensors' own
        reason = " ".join(str(error).split())  # the hub's client writes paragraphs
        raise ConfigError(
            f"The zero-shot model {model!r} cannot be loaded: {reason} Name a local folder in router.zero_shot_model, "
            "or set HF_TOKEN in .env where the hub is reachable."
        ) from error
    return torch, tokenizer, network.eval()
