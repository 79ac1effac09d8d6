"""Readers of texts, tables, manifests and settings, offered damaged files: only their documented errors leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from damage import DEEP, damaged, fuzzed, only_raises
from hypothesis import given
from hypothesis import strategies as st

from expert_router.artifacts import MANIFEST, load_expert, read_artifact
from expert_router.catalogue import Catalogue, read_taught
from expert_router.data.dialogues import read_dialogues
from expert_router.data.intents import read_intents
from expert_router.data.labelled import read_labelled
from expert_router.data.sources import Columns, read_table
from expert_router.errors import ConfigError, DataError
from expert_router.evaluation.questions import public_questions
from expert_router.knowledge.corpus import read_corpus
from expert_router.live.proposal import read_examples
from expert_router.settings import load_settings
from expert_router.training.examples import read_questions, read_reading
from expert_router.weights import load_lock
from support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASKED = b'question,answer,key\n"What, if anything, is REM sleep?",A stage.,stage|phase\nWho?,Benz,Benz\n'
ROUTED = b"query,experts,source,trap\nWhat is REM sleep?,sleep,test,\nWhich car?,cars|sleep,multi_topic,\n"
DIALOGUE = b'{"turns": [{"user": "Hi", "experts": ["sleep"], "kind": "start"}]}\n'
READ = b"passage,question,key\nREM sleep,What is it?,stage\n,What else?,\n"
PUBLIC = b'{"question": "What is REM?", "aliases": ["a stage"], "answer_type": "short", "expert": "sleep"}\n'
CLINC = b'{"train": [["a", "b"]], "val": [["a", "b"]], "test": [["a", "b"]], "oos_test": [["c", "oos"]]}'
BANKING = b"text,category\nwhere is my card,card\nlost it,lost\n"
MARKDOWN = b"# Sleep\n\nREM sleep is [a stage](x) of *sleep*.\n\n```\n# no heading\n```\n## Dreams ##\n\nText.\n"
VERSION = b'{"parent": 0, "change": "add x", "made": "2026", "added": ["x"], "hidden": []}'

PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>>endobj\n"
    b"4 0 obj<</Length 35>>stream\nBT /F 12 Tf (REM is a stage) Tj ET\nendstream endobj\n"
    b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
)


def _settings(path: Path) -> object:
    return load_settings(path, home=ROOT)


def _version(path: Path) -> object:
    return Catalogue(path.parents[2]).read(3)


def _current(path: Path) -> object:
    return Catalogue(path.parent).current()


def _taught(path: Path) -> object:
    manifest = ROOT / "experts" / "sleep" / "expert.toml"
    (path.parent / "expert.toml").write_bytes(manifest.read_bytes())
    return read_taught(path.parent)


def _banking(path: Path) -> object:
    path.with_name("test.csv").write_bytes(BANKING)
    return read_intents("banking77", path.parent)


SLEEP = (ROOT / "experts" / "sleep" / "expert.toml").read_bytes()
LOCK = (ROOT / "models.lock").read_bytes()[:3000].rpartition(b"[[")[0]

READERS: dict[str, tuple[str, bytes, Callable[[Path], object], type[Exception]]] = {
    "table.csv": ("table.csv", ASKED, lambda p: read_table(p, Columns(("question", "answer"), ("key",))), DataError),
    "table.jsonl": ("table.jsonl", PUBLIC, lambda p: read_table(p, Columns(("question",), ("aliases",))), DataError),
    "labelled.csv": ("labelled.csv", ROUTED, read_labelled, DataError),
    "labelled.jsonl": ("labelled.jsonl", b'{"query": "a", "label": ["cars"]}\n' * 3, read_labelled, DataError),
    "dialogues": ("dialogues.jsonl", DIALOGUE, read_dialogues, DataError),
    "clinc150": ("data_full.json", CLINC, lambda p: read_intents("clinc150", p.parent), DataError),
    "banking77": ("train.csv", BANKING, _banking, DataError),
    "questions": ("train_sleep.csv", ASKED, read_questions, DataError),
    "reading": ("reading.csv", READ, read_reading, DataError),
    "public": ("public.jsonl", PUBLIC, lambda p: public_questions(p, ["sleep"]), (DataError, ConfigError)),
    "examples.csv": ("examples.csv", ASKED, read_examples, DataError),
    "examples.txt": ("examples.txt", b"What is REM?\r\nWho sleeps?\n", read_examples, DataError),
    "taught": ("sleep/examples.csv", ASKED, _taught, ConfigError),
    "knowledge.md": ("knowledge/a.md", MARKDOWN, lambda p: read_corpus(p.parent), DataError),
    "knowledge.pdf": ("knowledge/a.pdf", PDF, lambda p: read_corpus(p.parent), DataError),
    "manifest": ("sleep/expert.toml", SLEEP, lambda p: load_expert(p, ROOT), ConfigError),
    "settings": ("own.toml", (ROOT / "configs" / "default.toml").read_bytes(), _settings, ConfigError),
    "lock": ("models.lock", LOCK, load_lock, ConfigError),
    "version": ("versions/3/version.json", VERSION, _version, ConfigError),
    "current": ("CURRENT", b"3\n", _current, ConfigError),
    "artifact": (MANIFEST, b'{"files": {"a.txt": "0"}}', lambda p: read_artifact(p.parent), ConfigError),
}


@pytest.mark.parametrize("reader", READERS)
@given(data=st.data())
@fuzzed
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, reader: str, data: st.DataObject) -> None:
    name, whole, read, errors = READERS[reader]
    content = data.draw(damaged(whole))
    only_raises(read, tmp_path / name, content, *(errors if isinstance(errors, tuple) else (errors,)))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bracket", [b"[", b'{"a":', b"a = ["])
def test_brackets_without_end_are_refused_or_only_text(tmp_path: Path, reader: str, bracket: bytes) -> None:
    name, whole, read, errors = READERS[reader]
    for content in (bracket * DEEP, whole.replace(b"[", bracket * DEEP, 1), whole.replace(b'"', b"[" * DEEP, 1)):
        only_raises(read, tmp_path / name, content, *(errors if isinstance(errors, tuple) else (errors,)))
