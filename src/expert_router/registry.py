"""Names to lazy factories: the import of a heavy library happens inside the factory that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Registry(Generic[T]):
    """What can be chosen by name in the settings. ``kind`` is the word used in the error."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        def add(factory: Callable[..., T]) -> Callable[..., T]:
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        return sorted(self._factories)

    def __getitem__(self, name: str) -> Callable[..., T]:
        if name not in self._factories:
            known = ", ".join(self.names())
            raise ConfigError(f"There is no {self._kind} named {name!r}. Known: {known}.")
        return self._factories[name]
