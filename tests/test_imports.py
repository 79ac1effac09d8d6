"""What is imported when: heavy libraries only where they are used. Each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

HEAVY = {
    "torch", "transformers", "gradio", "sklearn", "pandas", "ray", "openvino_genai", "openvino", "onnxruntime",
    "tokenizers", "pyarrow", "matplotlib", "rouge_score", "sacrebleu", "xllamacpp",
}  # fmt: skip
SERVER = """
import importlib, pkgutil
import expert_router.api, expert_router.serving
for package in (expert_router.api, expert_router.serving):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
import expert_router.commands.serve, uvicorn
"""


def imported_by(program: str) -> set[str]:
    """The top-level names of all modules that the program imported itself; what it bars from being imported is none."""
    report = "import sys, json; before = set(sys.modules)\n"
    report += f"{program}\nprint(json.dumps(sorted({{name for name in sys.modules if sys.modules[name]}} - before)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_the_public_types_and_errors_need_the_standard_library_alone() -> None:
    program = "from expert_router import Answer, Decision, ExpertRouterError, Message"
    assert imported_by(program) - sys.stdlib_module_names == {"expert_router"}


def test_the_server_and_all_of_serving_import_nothing_heavy() -> None:
    imported = imported_by(SERVER)
    assert {"fastapi", "uvicorn", "expert_router"} <= imported  # or nothing was looked at
    assert imported & HEAVY == set()


def test_a_running_echo_system_has_imported_nothing_heavy() -> None:
    program = """
import os; os.environ["EXPERT_ROUTER_ENGINE__NAME"] = "echo"
import expert_router
with expert_router.open("echo") as system:
    assert system.ask("Hello", model="general").text
"""
    assert imported_by(program) & HEAVY == set()


@pytest.mark.parametrize(
    "verb",
    [
        "ask",
        "batch",
        "bench",
        "chat",
        "chat_page",
        "evaluate",
        "expert",
        "explain",
        "optimize",
        "prepare",
        "route",
        "serve",
        "top",
        "train",
        "weights",
    ],
)
def test_asking_a_command_for_help_imports_nothing_heavy(verb: str) -> None:
    imported = imported_by(f"import expert_router.commands.{verb}")
    assert imported & (HEAVY | {"fastapi", "numpy", "gguf"}) == set()


def test_openvino_reports_its_use_to_nobody(tmp_path: Path) -> None:
    """It does where people have not switched that off, but not in CI: the variable that says so is taken away.

    Before any of our modules the package itself is imported.
    """
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    for before in ("", "import expert_router; "):
        subprocess.run([sys.executable, "-c", f"{before}import openvino"], env=environment, check=True)
        assert (tmp_path / "intel").exists() == (not before)  # where the library keeps what it calls us
        shutil.rmtree(tmp_path / "intel", ignore_errors=True)


def test_bm25s_does_not_find_jax_which_would_keep_a_gpu_for_itself(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("imported = True")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(values, k): raise SystemExit('computed with jax')")
    program = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from expert_router.knowledge.terms import TermIndex
assert "jax" not in sys.modules
import jax  # by whoever wants it
assert jax.imported
"""
    assert "bm25s" in imported_by(program)
