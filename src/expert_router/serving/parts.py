"""What routers, engines and knowledge are built of: each part made when it is first asked for, and once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from expert_router.artifacts import load_experts
from expert_router.catalogue import Catalogue, Version
from expert_router.engines.threads import inference_threads
from expert_router.errors import ConfigError
from expert_router.weights import ensure_model, load_lock

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from pathlib import Path

    from expert_router.knowledge.terms import TermIndex
    from expert_router.ports import Knowledge
    from expert_router.routing.embedding import RouterArtifact
    from expert_router.routing.encoder import SentenceEncoder
    from expert_router.settings import Settings
    from expert_router.types import Expert, Passage
    from expert_router.weights import LockedModel


class Parts:
    """What routers, engines and knowledge share, made when it is first asked for and once.

    ``version`` is the catalogue's that the experts are of. ``like`` lends what it has made, where it would be the same.
    Brings missing weights. Raises ``ConfigError``, ``DataError`` or ``WeightsError`` where they are used.
    """

    def __init__(
        self,
        settings: Settings,
        experts: Mapping[str, Expert],
        *,
        progress: bool,
        version: Version | None = None,
        like: Parts | None = None,
    ) -> None:
        self.settings = settings
        self.experts = experts
        self.progress = progress
        self.version = version or Version()
        self._read: Mapping[str, list[Passage]] = {}
        if like is not None:
            made = vars(like)
            of_texts = ("corpora", "terms", "knowledge") if like.texts == self.texts else ()
            vars(self).update({name: made[name] for name in ("encoder", "artifact", *of_texts) if name in made})
            unchanged = {name for name, texts in like.texts.items() if texts == self.texts.get(name)}
            self._read = {name: texts for name, texts in made.get("corpora", {}).items() if name in unchanged}

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The router's sentence encoder: fine-tuned where the settings name an artifact, else as it was published."""
        from expert_router.routing.encoder import SentenceEncoder, load_tuned_encoder

        settings = self.settings
        _, files = fetch_model(settings, settings.router.encoder, progress=self.progress)
        base, tokenizer = files["model.onnx"], files["tokenizer.json"]
        threads = inference_threads(settings.engine.threads)
        if settings.router.tuned_encoder is None:
            return SentenceEncoder(base, tokenizer, threads)
        return load_tuned_encoder(settings.resolve(settings.router.tuned_encoder), base, tokenizer, threads)

    @cached_property
    def terms(self) -> TermIndex:
        """The words of every expert's passages; experts without knowledge have none."""
        from expert_router.knowledge.terms import TermIndex

        return TermIndex(self.corpora)

    @cached_property
    def corpora(self) -> dict[str, list[Passage]]:
        from expert_router.knowledge.corpus import read_corpus

        folders = {name: expert.knowledge for name, expert in self.experts.items() if expert.knowledge is not None}
        return {name: self._read.get(name) or read_corpus(folder) for name, folder in folders.items()}

    @cached_property
    def texts(self) -> dict[str, Hashable]:
        """What tells whether an expert's texts are the same as in other parts, without reading them."""
        return {name: _files(expert.knowledge) for name, expert in self.experts.items() if expert.knowledge is not None}

    @cached_property
    def artifact(self) -> RouterArtifact:
        """What the embedding router was fitted to."""
        from expert_router.routing.embedding import RouterArtifact

        return RouterArtifact.load(self.settings.resolve(self.settings.router.artifact))

    @cached_property
    def knowledge(self) -> Knowledge:
        from expert_router.knowledge.index import KnowledgeIndex, embed_passages

        cache = self.settings.resolve(self.settings.paths.cache)
        vectors_SD = embed_passages(self.terms.passages, self.encoder, cache, progress=self.progress)
        return KnowledgeIndex(self.terms, vectors_SD, self.encoder)


def _files(folder: Path) -> Hashable:
    stats = sorted((path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def build_parts(settings: Settings, *, progress: bool = False) -> Parts:
    """The parts of all experts that can answer: those that ship, and those of the catalogue's current version."""
    version = Catalogue(settings.resolve(settings.paths.catalogue)).current()
    experts = version.experts(load_experts(settings.resolve(settings.paths.experts), settings.home))
    return Parts(settings, experts, version=version, progress=progress)


def fetch_model(settings: Settings, name: str, *, progress: bool) -> tuple[LockedModel, dict[str, Path]]:
    """A model of models.lock and its verified files, brought if they are missing."""
    lock = load_lock(settings.resolve(settings.paths.models_lock))
    if name not in lock:
        raise ConfigError(f"models.lock has no model {name!r}. Known: {', '.join(lock)}.")
    cache = settings.resolve(settings.paths.cache)
    return lock[name], ensure_model(lock[name], cache, token=settings.hf_token, progress=progress)
