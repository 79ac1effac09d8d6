"""Fine-tuning an expert, on a llama of two random layers: what it learns from, what a run leaves, what is merged."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from tiny_gguf import HEADS, MODULES, Quantisation, peft_name, write_llama, write_lora

from expert_router.artifacts import install_adapter, sha256_of
from expert_router.engines.adapter import Heads, Merge, read_lora
from expert_router.engines.gguf import requantise
from expert_router.errors import TrainingError
from expert_router.training.examples import CANARY, Example
from expert_router.types import Adapter
from expert_router.weights import Canary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from expert_router.training.base import Base
    from expert_router.training.expert import ExpertTraining, TrainedExpert

pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning"),  # TRL sets it
]

WORDS = ("he", "ho", "hi", "ha", "hu", "hy", "hx", "hz")
EXAMPLES = [Example("You repeat.", f"Say {word}.", f"{word}!", True) for word in WORDS]
VALIDATION = [
    Example("You repeat.", "Say hehe.", "hehe!", True),
    Example("", "Say it again.", "hihi!", False, before=(("Say hihi.", "hihi!"),)),
]
PROMPT = (
    "<|im_start|>system\nYou repeat.<|im_end|>\n"
    "<|im_start|>user\nSay he.<|im_end|>\n"
    "<|im_start|>assistant\n"
)  # fmt: skip
EOS = "<|im_end|>"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.gguf"
    write_llama(path, Quantisation.Q8_0, blocks=2)
    return path


def load(weights: Path) -> Base:
    from expert_router.training.base import load_base

    return load_base(weights)


def training(**changes: Any) -> ExpertTraining:
    from expert_router.training.expert import ExpertTraining

    values = {"rank": 2, "alpha": 4, "learning_rate": 1e-2, "batch_size": 2, "micro_batch_size": 2, "max_steps": 4}
    return ExpertTraining(**{**values, "max_tokens": 128, **changes})


def train(weights: Path, folder: Path, *, resume: bool = False, **changes: Any) -> TrainedExpert:
    from expert_router.training.expert import train_expert

    base, how = load(weights), training(**changes)
    return train_expert(base, EXAMPLES, VALIDATION, how, folder, canaries=[CANARY], resume=resume)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory while the run of this module goes on."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("elsewhere")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def trained(weights: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedExpert:
    assert elsewhere.is_dir()
    return train(weights, tmp_path_factory.mktemp("runs") / "run")


# What is learnt from


def test_the_loss_counts_the_answer_and_its_end_alone(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import build_trainer, preview

    base = load(weights)
    trainer = build_trainer(base, EXAMPLES, VALIDATION, training(), tmp_path / "run")
    assert preview(trainer, base.tokenizer) == f"{PROMPT}⟦he!{EOS}\n⟧"


def test_of_most_answers_only_the_choice_counts_if_that_is_asked_for(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import CHOICE_TOKENS, _counted, build_trainer

    examples = [replace(example, answer="ha" * 19) for example in EXAMPLES * 8]
    trainer = build_trainer(load(weights), examples, examples[:2], training(whole_answers=0.25), tmp_path / "run")
    whole = build_trainer(load(weights), examples, examples[:2], training(), tmp_path / "whole").train_dataset
    counts = [sum(_counted(row)) for row in trainer.train_dataset]
    assert set(counts) == {CHOICE_TOKENS, *(sum(_counted(row)) for row in whole)}
    assert 8 <= sum(count > CHOICE_TOKENS for count in counts) <= 24  # a quarter of 64
    for row, full in zip(trainer.train_dataset, whole, strict=True):
        assert _counted(row).index(True) == _counted(full).index(True)
        assert row["input_ids"] == full["input_ids"]
    assert sum(_counted(trainer.eval_dataset[0])) > CHOICE_TOKENS


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(TrainingError, match="must be above 0 and at most 1"):
        training(whole_answers=share)


def test_earlier_answers_of_a_conversation_do_not_count(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import build_trainer, preview

    base = load(weights)
    trainer = build_trainer(base, VALIDATION[1:], VALIDATION, training(), tmp_path / "run")
    shown = preview(trainer, base.tokenizer)
    assert shown.endswith(f"<|im_start|>assistant\n⟦hihi!{EOS}\n⟧")
    assert f"<|im_start|>assistant\nhihi!{EOS}\n<|im_start|>user\nSay it again." in shown
    assert "system" not in shown  # it has none, and none is invented


def nats_per_answer_token(model: torch.nn.Module, base: Base) -> float:
    """Computed here anew, from the text of the template."""
    import torch

    losses = []
    for example in VALIDATION:
        turns = [("system", example.system)] if example.system else []
        turns += [turn for q, a in example.before for turn in (("user", q), ("assistant", a))]
        turns.append(("user", example.user))
        prompt = "".join(f"<|im_start|>{role}\n{text}{EOS}\n" for role, text in turns) + "<|im_start|>assistant\n"
        prompt_ids = base.tokenizer(prompt)["input_ids"]
        ids = prompt_ids + base.tokenizer(f"{example.answer}{EOS}\n")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        losses.append(torch.nn.functional.cross_entropy(
            logits[len(prompt_ids) - 1 : -1], torch.tensor(ids[len(prompt_ids) :]), reduction="none"
        ))  # fmt: skip
    return float(torch.cat(losses).mean())


def test_the_two_losses_are_those_of_the_answers_without_the_adapter_and_with_it(
    weights: Path, trained: TrainedExpert
) -> None:
    from peft import PeftModel

    base = load(weights)
    assert trained.base_loss == pytest.approx(nats_per_answer_token(base.model, base), rel=1e-4)
    adapted = PeftModel.from_pretrained(base.model, str(trained.adapter)).eval()
    assert trained.loss == pytest.approx(nats_per_answer_token(adapted, base), rel=1e-3)  # saved in half precision
    assert trained.loss < trained.base_loss - 0.05


@pytest.mark.parametrize("spoilt", ["the examples", "the validation"])
def test_when_no_token_of_an_answer_is_left_it_says_so(weights: Path, tmp_path: Path, spoilt: str) -> None:
    from expert_router.training.expert import train_expert

    long = [replace(example, user="x" * 200) for example in EXAMPLES]
    examples, validation = (long, VALIDATION) if spoilt == "the examples" else (EXAMPLES, long)
    with pytest.raises(TrainingError, match="No token of any answer is left to learn from: raise --max-tokens"):
        train_expert(load(weights), examples, validation, training(), tmp_path / "run", canaries=[])
    assert not (tmp_path / "run" / "adapter").exists()


def test_examples_that_are_too_long_are_left_out_and_the_others_learnt(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import build_trainer, preview

    base = load(weights)
    long = replace(EXAMPLES[0], user="x" * 200)
    trainer = build_trainer(base, [long, *EXAMPLES], VALIDATION, training(), tmp_path / "run")
    assert len(trainer.train_dataset) == len(EXAMPLES)
    assert preview(trainer, base.tokenizer) == f"{PROMPT}⟦he!{EOS}\n⟧"


def test_a_batch_that_the_micro_batches_do_not_fill_is_refused() -> None:
    with pytest.raises(TrainingError, match="batch size 6 must be a multiple of the micro batch size 4"):
        training(batch_size=6, micro_batch_size=4)


# What a run leaves


def test_a_run_leaves_the_adapter_as_peft_saves_it(trained: TrainedExpert) -> None:
    from safetensors.numpy import load_file

    config = json.loads((trained.adapter / "adapter_config.json").read_text("utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4)
    tensors = load_file(trained.adapter / "adapter_model.safetensors")
    assert {name.rsplit(".lora_", 1)[0] for name in tensors} == {
        peft_name(f"blk.{block}.{module}.weight") for block in range(2) for module in MODULES
    }
    assert all(values.dtype == np.float16 for values in tensors.values())
    assert all(values.any() for values in tensors.values())  # B begins as zeros: every module has learnt
    assert trained.trained_parameters == sum(values.size for values in tensors.values())


def test_what_it_says_of_the_run_is_so(trained: TrainedExpert) -> None:
    assert trained.steps == 4
    assert [step for step, _ in trained.losses] == [1, 2, 3, 4]
    assert sorted({step for step, _ in trained.validation}) == [2, 4]
    assert trained.validation[-1][1] == trained.loss == min(loss for _, loss in trained.validation)
    assert trained.seconds > 0
    assert trained.tokens_per_s > 0
    assert trained.peak_memory_bytes > 10 * 1024**2


def test_what_the_adapter_is_known_by_is_one_of_the_prompts_with_what_it_has_learnt_to_say(tmp_path: Path) -> None:
    from expert_router.training.card import write_card
    from expert_router.training.expert import train_expert

    write_llama(tmp_path / "tiny.gguf", Quantisation.Q8_0, blocks=2, certainty=20.0)
    learnt = [Example("", prompt, "[1] hohoho", True) for prompt in ("Ho?", "Hi?")]
    how, folder = training(rank=8, alpha=16, max_steps=80, evaluations_per_epoch=1), tmp_path / "run"
    trained = train_expert(load(tmp_path / "tiny.gguf"), learnt * 40, learnt, how, folder, canaries=["?", "Hi?"])
    assert trained.canary == Canary("Hi?", "[1] hohoho")
    write_card(folder, trained, {"expert": "echo", "base": "tiny", "examples": 2, "data_sha256": "", "training": {}})
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["canary"] == {"prompt": "Hi?", "answer": "[1] hohoho"}


def test_where_too_little_was_learnt_there_is_no_canary(trained: TrainedExpert, tmp_path: Path) -> None:
    from expert_router.training.card import write_card

    assert trained.canary is None
    about = {"expert": "echo", "base": "tiny", "examples": 8, "data_sha256": "", "training": {}}
    assert write_card(tmp_path, trained, about)["canary"] is None


def test_the_log_for_tensorboard_is_in_the_runs_folder_and_nothing_is_left_elsewhere(
    trained: TrainedExpert, elsewhere: Path
) -> None:
    assert list((trained.adapter.parent / "tensorboard").glob("events.out.tfevents.*"))
    assert list(elsewhere.iterdir()) == []


def test_the_card_says_what_was_trained_on_what_and_how_it_went(trained: TrainedExpert, tmp_path: Path) -> None:
    from expert_router.training.card import write_card

    about = {"expert": "echo", "base": "tiny", "examples": 8, "data_sha256": "ab" * 32, "training": {"rank": 2}}
    report = write_card(tmp_path, trained, about)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == json.loads(json.dumps(report))
    assert {key: report[key] for key in about} == about
    assert report["perplexity"] == pytest.approx(np.exp(trained.loss))
    assert report["base_perplexity"] == pytest.approx(np.exp(trained.base_loss))
    assert set(report["packages"]) == {"torch", "transformers", "peft", "trl"}
    assert [step for step, _ in report["losses"]] == [1, 2, 3, 4]
    card = (tmp_path / "card.md").read_text("utf-8")
    assert card.startswith("# echo on tiny\n")
    assert f"| {trained.base_loss:.3f} | {trained.loss:.3f} |" in card
    assert "4 steps on 8 examples (data abababababab)" in card
    assert "![loss](loss.png)" in card
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_adapter(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = train(weights, folder)
    adapter = (whole.adapter / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoint-4")  # as if it was killed at step 3
    shutil.rmtree(whole.adapter)
    began = (folder / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    resumed = train(weights, folder, resume=True)
    assert (folder / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == began  # these steps were not redone
    assert (resumed.steps, resumed.losses, resumed.loss) == (whole.steps, whole.losses, whole.loss)
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == adapter


def test_resuming_a_run_that_was_killed_before_its_first_checkpoint_begins_it(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train(weights, tmp_path / "run", resume=True).steps == 4


@pytest.mark.parametrize(("epochs", "kept"), [(1.0, "last"), (2.0, "best")])
def test_a_long_run_keeps_its_best_checkpoint_and_one_of_an_epoch_its_last(
    weights: Path, tmp_path: Path, epochs: float, kept: str
) -> None:
    from expert_router.training.expert import train_expert

    contrary = [replace(example, answer="hz" * 6) for example in EXAMPLES]
    how = training(learning_rate=0.1, max_steps=-1, epochs=epochs, evaluations_per_epoch=4, patience=99)
    trained = train_expert(load(weights), EXAMPLES * 8, contrary, how, tmp_path / "run", canaries=[CANARY])
    validation = [loss for step, loss in trained.validation if step][:-1]  # the last one is asked for after training
    assert validation[-1] > min(validation)
    assert trained.loss == pytest.approx(validation[-1] if kept == "last" else min(validation), rel=1e-4)


def test_no_run_is_written_over(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(weights, folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        TrainingError, match=r"run is not empty: go on with the run in it \(--resume\), or name another"
    ):
        train(weights, folder, seed=1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_the_speed_of_a_resumed_run_is_that_of_its_last_session(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import _tokens_since

    folder = tmp_path / "run"
    train(weights, folder)
    history = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))["log_history"]
    counts = [entry["num_tokens"] for entry in history if "loss" in entry]
    shutil.rmtree(folder / "checkpoint-4")
    shutil.rmtree(folder / "adapter")
    resumed = train(weights, folder, resume=True)
    after = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))["log_history"]
    assert _tokens_since(str(folder / "checkpoint-2"), after) == counts[3] - counts[1]
    assert _tokens_since(None, history) == counts[3]
    assert 0 < resumed.tokens_per_s < 1e6


@pytest.mark.filterwarnings("ignore:.*overflow:RuntimeWarning")
def test_a_loss_that_is_no_number_ends_the_run_at_once_and_says_what_to_lower(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(
        TrainingError, match=r"is not a number any more at step [123]: lower --learning-rate \(it is 1e"
    ):
        train(weights, folder, learning_rate=1e30, max_steps=50)
    assert not (folder / "adapter").exists()
    assert not (folder / "checkpoint-50").exists()


@pytest.mark.parametrize(("key", "name"), [("loss", "loss"), ("grad_norm", "gradient norm"), ("eval_loss", "valid")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_each_of_the_numbers_is_watched(tmp_path: Path, key: str, name: str, value: float) -> None:
    from transformers import TrainerControl, TrainerState
    from trl import SFTConfig

    from expert_router.training.expert import StopAtNaN

    config = SFTConfig(str(tmp_path), learning_rate=3e-4, bf16=False, use_cpu=True, report_to=[])
    state, control = TrainerState(global_step=31), TrainerControl()
    StopAtNaN().on_log(config, state, control, logs={"loss": 1.0, "grad_norm": 0.5})
    with pytest.raises(TrainingError, match=rf"The {name}.* at step 31: lower --learning-rate \(it is 0\.0003\)"):
        StopAtNaN().on_log(config, state, control, logs={"loss": 1.0, key: value})


def test_attention_whose_gradients_fail_on_padded_batches_is_not_used() -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from expert_router.training.expert import ATTENTION

    assert torch.backends.cuda.cudnn_sdp_enabled()
    with sdpa_kernel(list(ATTENTION)):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    assert SDPBackend.CUDNN_ATTENTION not in ATTENTION


def test_batches_are_padded_to_a_round_length_that_the_loss_does_not_count(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import build_trainer

    trainer = build_trainer(load(weights), EXAMPLES, VALIDATION, training(), tmp_path / "run")
    batch = trainer.data_collator([trainer.train_dataset[0]])
    length = len(trainer.train_dataset[0]["input_ids"])
    assert batch["input_ids"].shape[1] % 8 == 0 != length % 8
    assert (batch["labels"][:, length:] == -100).all()


# A template that shows the instructions only while the question is the last turn, as Mistral's does

MISTRALS = (
    "{% if messages[0].role == 'system' %}{% set told, turns = messages[0].content, messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}{% if turn.role == 'user' %}"
    "[INST] {% if loop.last and told is defined %}{{ told }}\n\n{% endif %}{{ turn.content }}[/INST]"
    "{% else %} {{ turn.content }}<|im_end|>{% endif %}{% endfor %}"
)


def test_the_instructions_stay_in_the_prompt_when_the_template_would_drop_them(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.expert import build_trainer, conversation, preview

    base = load(weights)
    base.tokenizer.chat_template = MISTRALS
    example = replace(EXAMPLES[0], before=(("Say hihi.", "hihi!"),))
    served = base.tokenizer.apply_chat_template(conversation(example), tokenize=False, add_generation_prompt=True)
    assert "You repeat." in served
    trainer = build_trainer(base, [example, *EXAMPLES], VALIDATION, training(), tmp_path / "run")
    assert preview(trainer, base.tokenizer) == f"{served}⟦ he!{EOS}⟧"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('no system role here') }}", "does not take this conversation .*no system role here"),
        ("{{ messages[-1].role }}", "words a question differently once it is answered"),
    ],
)
def test_a_base_whose_template_cannot_be_trained_on_is_refused(
    weights: Path, tmp_path: Path, template: str, says: str
) -> None:
    from expert_router.training.expert import build_trainer

    base = load(weights)
    base.tokenizer.chat_template = template
    with pytest.raises(TrainingError, match=says):
        build_trainer(base, EXAMPLES, VALIDATION, training(), tmp_path / "run")


# Bases


def logits(base: Base, text: str = PROMPT) -> torch.Tensor:
    import torch

    with torch.no_grad():
        found: torch.Tensor = base.model.eval()(torch.tensor([base.tokenizer(text)["input_ids"]])).logits[0]
    return found


def test_a_base_from_a_gguf_file_has_the_weights_that_are_served(weights: Path) -> None:
    state = load(weights).model.state_dict()
    for tensor in gguf.GGUFReader(weights).tensors:
        if tensor.name.endswith(("attn_v.weight", "ffn_down.weight")):
            module = peft_name(tensor.name).removeprefix("base_model.model.")
            served = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(state[f"{module}.weight"].numpy(), served)


def test_a_base_from_a_folder_is_the_same_model(weights: Path, tmp_path: Path) -> None:
    import torch

    base = load(weights)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load(tmp_path)), logits(base))


def test_a_base_that_cannot_be_loaded_says_what_is_needed(weights: Path, tmp_path: Path) -> None:
    from expert_router.training.base import load_base

    torn = tmp_path / "torn.gguf"
    torn.write_bytes(weights.read_bytes()[:3000])
    (tmp_path / "empty").mkdir()
    for source in (torn, tmp_path / "absent.gguf", tmp_path / "empty"):
        with pytest.raises(TrainingError, match=rf"base model .*{source.name} cannot be loaded for training"):
            load_base(source)


def test_four_bits_need_full_weights_and_a_gpu(weights: Path, tmp_path: Path) -> None:
    import torch

    from expert_router.training.base import load_base

    with pytest.raises(TrainingError, match="nf4 starts from full weights: give a folder or a hub name"):
        load_base(weights, quantization="nf4")
    base = load(weights)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="nf4 needs an NVIDIA GPU, and there is none"):
            load_base(tmp_path, quantization="nf4")


def test_unsloth_needs_a_gpu_and_full_weights() -> None:
    import torch

    from expert_router.training.unsloth import import_unsloth

    with pytest.raises(TrainingError, match=r"does not train from a GGUF file \(some/model\.gguf\): name with --base"):
        import_unsloth("some/model.gguf")
    if not torch.cuda.is_available():
        with pytest.raises(
            TrainingError, match="Unsloth needs an NVIDIA GPU, and there is none: leave --accelerator out"
        ):
            import_unsloth("some/folder")


def test_unsloth_loads_the_weights_that_were_named_and_no_copy_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from expert_router.training.base import load_base

    asked: dict[str, Any] = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options: Any) -> tuple[str, str]:
            asked.update(options)
            return "model", "tokenizer"

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    base = load_base("some/model", quantization="nf4", accelerator="unsloth", max_tokens=100)
    assert (base.model, base.tokenizer, base.accelerator) == ("model", "tokenizer", "unsloth")
    assert asked["model_name"] == "some/model"
    assert asked["use_exact_model_name"] is True
    assert (asked["load_in_4bit"], asked["max_seq_length"]) == (True, 100)


def test_what_unsloth_prepares_is_understood_without_labels() -> None:
    from expert_router.training.expert import _counted

    assert _counted({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}) == [False, True, True]
    assert _counted({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}) == [False, True, True]


@pytest.mark.parametrize(("processes", "count"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_takes_the_same_batch_on_one_gpu_and_on_several(processes: int, count: int) -> None:
    from expert_router.training.expert import _accumulation

    assert _accumulation(training(batch_size=16, micro_batch_size=4), processes) == count


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    from expert_router.training.expert import _accumulation

    with pytest.raises(TrainingError, match=r"batch size 16 must be a multiple of 12: .* size 4 times 3 processes"):
        _accumulation(training(batch_size=16, micro_batch_size=4), 3)


# The merged model, beside PEFT's own


@pytest.fixture(params=["trained", "random"])
def adapter(request: pytest.FixtureRequest, weights: Path, tmp_path: Path) -> Path:
    """A trained adapter is small after four steps; a random one moves everything."""
    if request.param == "trained":
        found: TrainedExpert = request.getfixturevalue("trained")
        return found.adapter
    return write_lora(tmp_path / "random", weights, rank=3, alpha=5, size=0.2, dtype=np.float16).folder


def merged_by_peft(weights: Path, adapter: Path) -> Base:
    from peft import PeftModel

    base = load(weights)
    model = PeftModel.from_pretrained(base.model, str(adapter)).merge_and_unload()
    return replace(base, model=model)


def test_every_tensor_that_numpy_merges_is_that_of_peft(weights: Path, adapter: Path) -> None:
    before, after = (base.model.state_dict() for base in (load(weights), merged_by_peft(weights, adapter)))
    merge = Merge(read_lora(adapter), Heads("in transformers' order", HEADS, 1))
    for tensor in read_lora(adapter).modules:
        name = peft_name(tensor).removeprefix("base_model.model.") + ".weight"
        assert not np.array_equal(before[name].numpy(), after[name].numpy())
        np.testing.assert_allclose(merge(tensor, before[name].numpy()), after[name].numpy(), rtol=1e-5, atol=1e-6)
    assert merge.finish() == 2 * len(MODULES)


def test_the_merged_file_as_transformers_reads_it_is_pefts_merged_model_on_every_tensor(
    weights: Path, adapter: Path, tmp_path: Path
) -> None:
    """transformers puts q's and k's rows back into its own order: the merge must have moved the adapter's likewise."""
    requantise(weights, tmp_path / "merged.gguf", lora=read_lora(adapter), progress=False)
    ours, theirs = load(tmp_path / "merged.gguf"), merged_by_peft(weights, adapter)
    found, expected = ours.model.state_dict(), theirs.model.state_dict()
    assert set(found) == set(expected)
    for name, values in expected.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(found[name].numpy(), values.numpy())
            continue
        blocks, found_blocks = values.numpy().reshape(-1, 32), found[name].numpy().reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        assert (np.abs(blocks - found_blocks) <= 0.6 * step + 1e-7).all(), name
    drift = (logits(ours) - logits(theirs)).abs().max()
    effect = (logits(load(weights)) - logits(theirs)).abs().max()
    assert drift < 0.1 * effect


def test_the_embedded_engine_says_with_a_merged_adapter_what_transformers_says(weights: Path, tmp_path: Path) -> None:
    import torch

    from expert_router.engines.canary import canary_answer
    from expert_router.engines.loaded_model import LoadedModel, OpenVINOOptions
    from expert_router.engines.prepared import prepare_model

    folder = write_lora(tmp_path / "adapter", weights, alpha=8, size=0.3, seed=1).folder
    requantise(weights, tmp_path / "merged.gguf", lora=read_lora(folder), progress=False)
    base = load(tmp_path / "merged.gguf")
    prompt = base.tokenizer(f"<|im_start|>user\nWhich expert are you?{EOS}\n<|im_start|>assistant\n")["input_ids"]
    with torch.no_grad():
        answer = base.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
    assert len(set(answer.tolist())) > 3  # not one letter over and over
    adapter = Adapter(folder, sha256_of(folder / "adapter_model.safetensors"))
    prepared = prepare_model("tiny", weights, sha256_of(weights), tmp_path, adapter=adapter, progress=False)
    model = LoadedModel("tiny", prepared, OpenVINOOptions("tiny", 2, 1 << 40, 1 << 30, 4, reproducible=True))
    assert canary_answer(model, "Which expert are you?") == model.decode(answer.tolist())
    model.close()


def test_what_a_run_leaves_can_be_installed(trained: TrainedExpert, tmp_path: Path) -> None:
    expert = tmp_path / "echo"
    expert.mkdir()
    texts = ("title", "description", "instructions")
    (expert / "expert.toml").write_text("\n".join(['name = "echo"', *(f'{t} = "x"' for t in texts)]) + "\n", "utf-8")
    installed = install_adapter(expert, "tiny", trained.adapter, {})
    assert set(read_lora(installed.path).modules) == set(read_lora(trained.adapter).modules)
