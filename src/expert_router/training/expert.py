"""Fine-tune an expert: LoRA (Hu et al. 2021) on all linear layers of the base, by TRL and PEFT.

The loss counts the answer alone, never the prompt. A run has a folder of its own and is never overwritten; killed, it
goes on from its last checkpoint. It leaves the adapter as PEFT saves it, a report card, the loss curve as a picture,
and TensorBoard's log. Needs the train extra.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from expert_router.artifacts import ADAPTER_WEIGHTS
from expert_router.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_router.training.base import Base
    from expert_router.training.examples import Example

ADAPTER_FOLDER, TENSORBOARD_FOLDER = "adapter", "tensorboard"
IGNORED = -100
"""The label of a token that the loss does not count."""


@dataclass(frozen=True, slots=True)
class ExpertTraining:
    """How to train. ``batch_size`` is per step of the optimiser; ``micro_batch_size`` what fits into memory at once.

    ``max_tokens`` bounds an example, prompt and answer together; ``patience`` counts evaluations without progress.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    learning_rate: float = 2e-4
    epochs: float = 3.0
    batch_size: int = 16
    micro_batch_size: int = 4
    max_tokens: int = 1536
    evaluations_per_epoch: int = 2
    patience: int = 3
    max_steps: int = -1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size % self.micro_batch_size:
            raise TrainingError(
                f"The batch size {self.batch_size} must be a multiple of the micro batch size {self.micro_batch_size}."
            )


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """``losses`` are (step, training loss), ``validation`` (step, validation loss); losses are nats per token."""

    adapter: Path
    losses: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    base_loss: float
    loss: float
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int
    trained_parameters: int
    steps: int

    def about(self) -> dict[str, Any]:
        """For the report card, perplexities included."""
        values = {key: value for key, value in asdict(self).items() if key not in {"adapter", "losses", "validation"}}
        return {**values, "base_perplexity": math.exp(self.base_loss), "perplexity": math.exp(self.loss)}


def train_expert(
    base: Base,
    examples: Sequence[Example],
    validation: Sequence[Example],
    training: ExpertTraining,
    folder: Path,
    *,
    resume: bool = False,
) -> TrainedExpert:
    """Train an adapter into ``folder``.

    Raises ``TrainingError``: another run's folder, no answer left to learn from, out of memory.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty: go on with the run in it (--resume), or name another folder.")
    trainer = build_trainer(base, examples, validation, training, folder)
    started = time.perf_counter()
    try:
        base_loss = _loss_without_adapter(trainer)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if resume else None)
        loss = float(trainer.evaluate()["eval_loss"])
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The memory is not enough ({error}). Lower --micro-batch-size, or use --quantization nf4 on a GPU."
        ) from error
    adapter = folder / ADAPTER_FOLDER
    _save(trainer, adapter)
    history = trainer.state.log_history
    seconds = time.perf_counter() - started
    tokens = max((int(entry["num_tokens"]) for entry in history if "num_tokens" in entry), default=0)
    return TrainedExpert(
        adapter=adapter,
        losses=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        validation=[(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        base_loss=base_loss,
        loss=loss,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        peak_memory_bytes=_peak_memory_bytes(),
        trained_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        steps=trainer.state.global_step,
    )


def build_trainer(
    base: Base, examples: Sequence[Example], validation: Sequence[Example], training: ExpertTraining, folder: Path
) -> SFTTrainer:
    """TRL's trainer with its data already turned to tokens. Raises ``TrainingError`` when no answer is left of it."""
    cuda = torch.cuda.is_available()
    steps_per_epoch = max(1, len(examples) // training.batch_size)
    every = max(1, steps_per_epoch // training.evaluations_per_epoch)
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=training.micro_batch_size,
        per_device_eval_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.batch_size // training.micro_batch_size,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * steps_per_epoch * training.epochs)),
        logging_steps=max(1, every // 5),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        max_length=training.max_tokens,
        completion_only_loss=True,
        packing=False,
        gradient_checkpointing=False,
        bf16=cuda,
        use_cpu=not cuda,
        seed=training.seed,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
    )
    lora = LoraConfig(
        r=training.rank,
        lora_alpha=training.alpha,
        lora_dropout=training.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = SFTTrainer(
        model=base.model,
        args=config,
        train_dataset=_dataset(examples),
        eval_dataset=_dataset(validation),
        processing_class=base.tokenizer,
        peft_config=lora,
        callbacks=[EarlyStoppingCallback(training.patience), _tensorboard(folder)],
    )
    _refuse_empty(trainer)
    return trainer


def _tensorboard(folder: Path) -> TensorBoardCallback:
    """Writes into the run's folder from the first value on; left alone it begins in the working directory."""
    callback = TensorBoardCallback()
    callback.logging_dir = str(folder / TENSORBOARD_FOLDER)
    return callback


def preview(trainer: SFTTrainer, tokenizer: Any) -> str:
    """The first example with what the loss counts marked: ⟦answer⟧."""
    row = trainer.train_dataset[0]
    pieces = []
    counted = False
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if (label != IGNORED) != counted:
            pieces.append("⟧" if counted else "⟦")
            counted = not counted
        pieces.append(tokenizer.decode([token]))
    return "".join(pieces) + ("⟧" if counted else "")


def _dataset(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": conversation(e),
                "completion": [{"role": "assistant", "content": e.answer}],
            }
            for e in examples
        ]
    )


def conversation(example: Example) -> list[dict[str, str]]:
    """What comes before the answer, as chat templates take it."""
    turns = [{"role": "system", "content": example.system}] if example.system else []
    for question, answer in example.before:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*turns, {"role": "user", "content": example.user}]


def _refuse_empty(trainer: SFTTrainer) -> None:
    """TRL has cut long examples by now and dropped those of which no answer was left."""
    for split in (trainer.train_dataset, trainer.eval_dataset):
        if not any(label != IGNORED for labels in split["labels"] for label in labels):
            raise TrainingError("No token of any answer is left to learn from: raise --max-tokens.")


def _save(trainer: SFTTrainer, folder: Path) -> None:
    """As PEFT saves it, in half precision: the weights it is added to have eight bits."""
    trainer.model.save_pretrained(str(folder))
    weights = folder / ADAPTER_WEIGHTS
    save_file({name: values.half() for name, values in load_file(weights).items()}, weights, metadata={"format": "pt"})


def _loss_without_adapter(trainer: SFTTrainer) -> float:
    with trainer.model.disable_adapter():
        return float(trainer.evaluate()["eval_loss"])


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kibibytes on Linux
