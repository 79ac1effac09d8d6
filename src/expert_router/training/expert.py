"""Fine-tune an expert: LoRA (Hu et al. 2021) on all linear layers of the base, by TRL and PEFT.

The loss counts the answer alone, never the prompt. A run has a folder of its own and is never overwritten; killed, it
goes on from its last checkpoint. It leaves the adapter as PEFT saves it, a report card, the loss curve as a picture,
and TensorBoard's log. Needs the train extra.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from datasets import Dataset
from jinja2 import TemplateError
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from expert_router.artifacts import ADAPTER_WEIGHTS
from expert_router.errors import TrainingError
from expert_router.training.canary import record_canary
from expert_router.training.unsloth import adapter_by_unsloth

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from expert_router.training.base import Base
    from expert_router.training.examples import Example
    from expert_router.weights import Canary

ADAPTER_FOLDER, TENSORBOARD_FOLDER = "adapter", "tensorboard"
IGNORED = -100
"""The label of a token that the loss does not count."""
ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
"""All that torch chooses from but cuDNN's, its first choice on Hopper since 2.11: for a padded batch, whose mask it is
given, that one's backward pass can return a gradient that is no number (pytorch/pytorch#196678). It depends on the
batch's length (64 more than a multiple of 128) and on strongly negative scores, which Qwen2.5 has."""
CHOICE_TOKENS = 8
"""The number of a passage and how the quote from it begins: what an answer chooses; the rest is copied."""
PADDED_TO = 8
"""Batches are as long as a multiple of it, which half precision computes fastest."""


@dataclass(frozen=True, slots=True)
class ExpertTraining:
    """How to train; the defaults are those of the shipped experts on the default base.

    ``batch_size`` is per step of the optimiser, ``micro_batch_size`` what fits into memory at once; on several GPUs the
    former is shared out among them, the latter is that of each. ``max_tokens`` bounds an example, prompt and answer
    together.

    A run of up to one epoch keeps its last step: with the learning rate still high a checkpoint can have the better
    validation loss and read worse (docs/log.md). Of a longer one the best checkpoint is kept, and it ends after
    ``patience`` evaluations without progress.

    ``whole_answers`` is the share of examples whose answer counts whole; of the others its first tokens do, where an
    expert that reads chooses: to refuse or which passage to quote from where. The rest, copied, is most of the tokens.
    """

    rank: int = 6
    alpha: int = 16
    dropout: float = 0.0
    learning_rate: float = 4e-4
    epochs: float = 1.0
    batch_size: int = 16
    micro_batch_size: int = 4
    max_tokens: int = 1536
    evaluations_per_epoch: int = 2
    patience: int = 3
    max_steps: int = -1
    whole_answers: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.whole_answers <= 1:
            raise TrainingError(f"The share of whole answers must be above 0 and at most 1, not {self.whole_answers}.")
        if self.batch_size % self.micro_batch_size:
            raise TrainingError(
                f"The batch size {self.batch_size} must be a multiple of the micro batch size {self.micro_batch_size}."
            )


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """``losses`` are (step, training loss), ``validation`` (step, validation loss); losses are nats per token.

    Of a run that was resumed, the steps and the losses are those of the whole run; ``seconds`` and ``tokens_per_s`` are
    those of the last session, the latter while it trained.
    """

    adapter: Path
    canary: Canary | None
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
    canaries: Sequence[str],
    resume: bool = False,
) -> TrainedExpert:
    """Train an adapter into ``folder``; in one of several processes, only the first writes there.

    ``canaries`` are prompts: the adapter is known by its answer to one of them.

    Raises ``TrainingError``: another run's folder, no answer left to learn from, out of memory, a loss that is no
    number.
    """
    if not resume and folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty: go on with the run in it (--resume), or name another folder.")
    trainer = build_trainer(base, examples, validation, training, folder)
    checkpoint = get_last_checkpoint(str(folder)) if resume else None
    started = time.perf_counter()
    try:
        with sdpa_kernel(list(ATTENTION)):
            base_loss = _loss_without_adapter(trainer)
            trained_from = time.perf_counter()
            trainer.train(resume_from_checkpoint=checkpoint)
            training_s = time.perf_counter() - trained_from
            loss = float(trainer.evaluate()["eval_loss"])
            canary = record_canary(trainer.model, base.tokenizer, canaries)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The memory is not enough ({error}). Lower --micro-batch-size, or use --quantization nf4 on a GPU."
        ) from error
    adapter = folder / ADAPTER_FOLDER
    if trainer.is_world_process_zero():
        _save(trainer, adapter)
    history = trainer.state.log_history
    return TrainedExpert(
        adapter=adapter,
        canary=canary,
        losses=[(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
        validation=[(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry],
        base_loss=base_loss,
        loss=loss,
        seconds=time.perf_counter() - started,
        tokens_per_s=_tokens_since(checkpoint, history) / training_s,
        peak_memory_bytes=_peak_memory_bytes(),
        trained_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        steps=trainer.state.global_step,
    )


def _tokens_since(checkpoint: str | None, history: Sequence[dict[str, Any]]) -> int:
    """Tokens trained on after the checkpoint: TRL counts from nought in every session."""
    resumed_at = int(checkpoint.rpartition("-")[2]) if checkpoint else 0
    return max((int(e["num_tokens"]) for e in history if "num_tokens" in e and e["step"] > resumed_at), default=0)


def build_trainer(
    base: Base, examples: Sequence[Example], validation: Sequence[Example], training: ExpertTraining, folder: Path
) -> SFTTrainer:
    """TRL's trainer with its data already turned to tokens. Raises ``TrainingError`` when no answer is left of it."""
    cuda = torch.cuda.is_available()
    by_unsloth = base.accelerator == "unsloth"
    steps_per_epoch = max(1, len(examples) // training.batch_size)
    every = max(1, steps_per_epoch // training.evaluations_per_epoch)
    goes_back = training.epochs > 1
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=training.micro_batch_size,
        per_device_eval_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=_accumulation(training, PartialState().num_processes),
        num_train_epochs=training.epochs,
        max_steps=training.max_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * steps_per_epoch * training.epochs)),
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a loss that is no number is logged as the mean of those before it
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=goes_back,
        metric_for_best_model="eval_loss",
        max_length=training.max_tokens,
        completion_only_loss=True,
        packing=False,
        pad_to_multiple_of=PADDED_TO,
        train_sampling_strategy="group_by_length",
        gradient_checkpointing=by_unsloth
        or getattr(base.model, "is_loaded_in_4bit", False),  # four bits: to save memory
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
    early_stopping = [EarlyStoppingCallback(training.patience)] if goes_back else []
    folded = _folds_instructions(base.tokenizer, [*examples, *validation])
    trainer = SFTTrainer(
        model=adapter_by_unsloth(base.model, training) if by_unsloth else base.model,
        args=config,
        train_dataset=_dataset(examples, folded=folded),
        eval_dataset=_dataset(validation, folded=folded),
        processing_class=base.tokenizer,
        peft_config=None if by_unsloth else lora,
        callbacks=[*early_stopping, _tensorboard(folder), StopAtNaN()],
    )
    _refuse_empty(trainer)
    if training.whole_answers < 1:
        trainer.train_dataset = _counting_choices(trainer.train_dataset, training)
    return trainer


class StopAtNaN(TrainerCallback):
    """Ends a run that cannot recover: once a weight is no number, everything computed with it is none either."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        for key, name in (("loss", "loss"), ("grad_norm", "gradient norm"), ("eval_loss", "validation loss")):
            if not math.isfinite((logs or {}).get(key, 0.0)):
                raise TrainingError(
                    f"The {name} is not a number any more at step {state.global_step}: lower --learning-rate (it is "
                    f"{args.learning_rate:g}); if that does not help, lower --micro-batch-size."
                )


def _accumulation(training: ExpertTraining, processes: int) -> int:
    """Micro batches of each process for one step of the optimiser."""
    count, rest = divmod(training.batch_size, training.micro_batch_size * processes)
    if rest:
        raise TrainingError(
            f"The batch size {training.batch_size} must be a multiple of {training.micro_batch_size * processes}: the "
            f"micro batch size {training.micro_batch_size} times {processes} processes."
        )
    return count


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
    for token, counts in zip(row["input_ids"], _counted(row), strict=True):
        if counts != counted:
            pieces.append("⟧" if counted else "⟦")
            counted = counts
        pieces.append(tokenizer.decode([token]))
    return "".join(pieces) + ("⟧" if counted else "")


def _dataset(examples: Sequence[Example], *, folded: bool) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": _fold(conversation(e)) if folded else conversation(e),
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


def _folds_instructions(tokenizer: Any, examples: Sequence[Example]) -> bool:
    """Whether instructions must stand in the last question for the prompt to be the same with the answer as without.

    Mistral's template writes them there itself, but only while that question is the last turn: with the answer after it
    they would vanish, and the adapter would learn to answer without them. Raises ``TrainingError`` for a template that
    cannot be trained on either way.
    """
    example = next((e for e in examples if e.system), examples[0])
    answer = {"role": "assistant", "content": example.answer}
    turns = conversation(example)
    try:
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        for folded, before in enumerate((turns, _fold(turns))):
            if tokenizer.apply_chat_template([*before, answer], tokenize=False).startswith(prompt):
                return bool(folded)
    except (TemplateError, ValueError) as error:
        raise TrainingError(
            f"The base's chat template does not take this conversation ({error}): name an instruct model with --base."
        ) from error
    raise TrainingError("The base's chat template words a question differently once it is answered: take another base.")


def _fold(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    if turns[0]["role"] != "system":
        return turns
    system, *between, last = turns
    return [*between, {**last, "content": f"{system['content']}\n\n{last['content']}"}]


def _counted(row: dict[str, Any]) -> list[bool]:
    """Which tokens of a prepared example the loss counts; Unsloth leaves the labels to the collator."""
    if "labels" in row:
        return [label != IGNORED for label in row["labels"]]
    return [bool(counts) for counts in row["completion_mask"]]


def _counting_choices(rows: Dataset, training: ExpertTraining) -> Dataset:
    """Of all but ``whole_answers`` of the examples, only the first tokens of the answer are counted.

    Validation counts answers whole: its loss stays comparable.
    """
    column, nothing = ("labels", IGNORED) if "labels" in rows.column_names else ("completion_mask", 0)
    rng = random.Random(training.seed)  # noqa: S311 - reproducible, not secret

    def choice_alone(row: dict[str, Any]) -> dict[str, Any]:
        if rng.random() < training.whole_answers:
            return {column: row[column]}
        first = _counted(row).index(True)
        end = first + CHOICE_TOKENS
        return {column: [*row[column][:end], *[nothing] * len(row[column][end:])]}

    return rows.map(choice_alone, load_from_cache_file=False)


def _refuse_empty(trainer: SFTTrainer) -> None:
    """TRL has cut long examples by now and dropped those of which no answer was left."""
    for split in (trainer.train_dataset, trainer.eval_dataset):
        if not any(any(_counted(row)) for row in split):
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
