"""API keys: a file with a JSON object a line for each, read again when it changes.

Only hashes are kept. A secret is 256 random bits, so its SHA-256 can neither be guessed nor be looked up in a table;
slow hashes are for passwords, which people choose, and one would cost each request tens of milliseconds.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from expert_router.artifacts import write_atomically
from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "er"
SECRET_BYTES = 32
OWNER_ALONE = 0o600
LOCK_TIMEOUT_S = 10.0
NO_HASH = "0" * 64
"""Of no secret: who names no key is compared with it, so that this takes as long."""

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Scope = Literal["user", "admin"]


class Key(BaseModel):
    """Who may ask, and how much. ``admin`` may also change the experts. ``None`` means without a limit.

    After a rotation ``previous_hash`` counts until ``previous_until``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern="^[0-9a-z]{1,32}$")
    name: str = Field(min_length=1)
    hash: Hash
    scope: Scope = "user"
    created: AwareDatetime
    expires: AwareDatetime | None = None
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    max_running: int | None = Field(default=None, ge=1)
    previous_hash: Hash | None = None
    previous_until: AwareDatetime | None = None

    def opened_by(self, digest: str) -> bool:
        """Whether this is the hash of its secret, in time that does not depend on where they differ."""
        now = datetime.now(UTC)
        right = hmac.compare_digest(digest, self.hash)
        earlier = hmac.compare_digest(digest, self.previous_hash or NO_HASH)
        fresh = self.previous_until is not None and now < self.previous_until
        return (right or (earlier and fresh)) and not self.expired(now)

    def expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


def new_key(name: str, **about: object) -> tuple[Key, str]:
    """A key with a secret that is nowhere else; ``about`` are further fields. Raises ``ConfigError``."""
    identifier = secrets.token_hex(4)
    secret = _new_secret(identifier)
    fields = {"id": identifier, "name": name, "hash": hash_of(secret), "created": _now(), **about}
    try:
        return Key.model_validate(fields), secret
    except ValidationError as error:
        raise ConfigError(f"There can be no such key: {_problems(error)}.") from error


def rotated(key: Key, grace: timedelta) -> tuple[Key, str]:
    """The same key with a new secret; the one that it had counts for ``grace`` more."""
    secret = _new_secret(key.id)
    until = _now() + grace
    changed = {"hash": hash_of(secret), "previous_hash": key.hash, "previous_until": until}
    return key.model_copy(update=changed), secret


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(path: Path) -> dict[str, Key]:
    """By id. Raises ``ConfigError``, which names the line at fault and quotes nothing of it."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"There is no file of keys {path}. Make it: expert-router keys add NAME") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The file of keys {path} cannot be read: {error}.") from error
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key = Key.model_validate_json(line)
        except ValidationError as error:
            raise ConfigError(f"{path}, line {number} is not a key: {_problems(error)}.") from error
        if key.id in keys:
            raise ConfigError(f"{path}, line {number}: there is another key {key.id}.")
        keys[key.id] = key
    return keys


@contextmanager
def changing(path: Path) -> Iterator[dict[str, Key]]:
    """The keys, to be changed; they are written when the block is left without an error, readable by the owner alone.

    Nobody else changes them meanwhile, and whoever reads finds those before or those after. Raises ``ConfigError``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT_S):
            keys = read_keys(path) if path.exists() else {}
            yield keys
            lines = (key.model_dump_json(exclude_none=True) for key in keys.values())
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode(), OWNER_ALONE)
    except Timeout:
        raise ConfigError(f"Another process has been changing {path} for {LOCK_TIMEOUT_S:.0f} s.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}), so the keys are as they were.") from error


class Keyring:
    """The keys that count now. A file that is broken or gone leaves those that counted before, and is warned of.

    ``path`` is ``None`` where nobody needs a key; ``admin_key`` is a secret that the file does not have, of an admin.
    Raises ``ConfigError`` when the file cannot be read at first.
    """

    def __init__(self, path: Path | None = None, admin_key: str | None = None) -> None:
        self._path = path
        self._admin = _admin(admin_key) if admin_key else None
        self._seen = self._state()
        self._keys: Mapping[str, Key] = read_keys(path) if path else {}

    @property
    def required(self) -> bool:
        """Whether who asks needs a key."""
        return self._path is not None

    @property
    def has_admin(self) -> bool:
        """Whether anybody may change the experts."""
        self._read_again()
        now = datetime.now(UTC)
        return self._admin is not None or any(k.scope == "admin" and not k.expired(now) for k in self._keys.values())

    def find(self, secret: str) -> Key | None:
        """The key that counts and has this secret."""
        self._read_again()
        digest = hash_of(secret)
        if self._admin is not None and self._admin.opened_by(digest):
            return self._admin
        prefix, _, rest = secret.partition("-")
        key = self._keys.get(rest.partition("-")[0]) if prefix == PREFIX else None
        if key is None:
            hmac.compare_digest(digest, NO_HASH)
            return None
        return key if key.opened_by(digest) else None

    def _read_again(self) -> None:
        state = self._state()
        if self._path is None or state == self._seen:
            return
        self._seen = state
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            logger.warning("the keys stay as they were", extra={"reason": error.message})
        else:
            logger.info("keys read", extra={"keys": len(self._keys)})

    def _state(self) -> tuple[int, int, int] | None:
        """Different after each change; asking costs a few microseconds."""
        try:
            about = self._path.stat() if self._path else None
        except OSError:
            return None
        return about and (about.st_mtime_ns, about.st_ino, about.st_size)


def secret_in(authorization: str, *, basic: bool = False) -> str:
    """What an ``Authorization`` header brings: a bearer token, or with ``basic`` a password too; empty without one."""
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _admin(secret: str) -> Key:
    return Key(id="admin", name="server.admin_key", hash=hash_of(secret), scope="admin", created=_now())


def _new_secret(identifier: str) -> str:
    return f"{PREFIX}-{identifier}-{secrets.token_urlsafe(SECRET_BYTES)}"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _problems(error: ValidationError) -> str:
    """Without the values, as a file may hold a secret by mistake."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'JSON'}: {each['msg']}" for each in error.errors())
