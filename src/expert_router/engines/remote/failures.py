"""What a server's failures mean: what to tell who asked, and whether another server may be asked instead."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx2

from expert_router.engines.http_client import BrokenAnswerError, ConnectError, ConnectTimeoutError, SilenceError
from expert_router.engines.remote.completions import retry_after_s
from expert_router.errors import (
    ContextLengthError,
    EngineError,
    EngineTimeoutError,
    ExpertRouterError,
    OverloadedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from expert_router.engines.http_client import Response
    from expert_router.engines.remote.completions import Complaint

SERVER_ERROR = 500
MAX_QUOTE = 300
"""Characters of the server's own words in an error text."""
DEFAULT_RETRY_AFTER_S = 1.0


class AttemptError(Exception):
    """A request that came to nothing at one server: ``error`` is what to tell who asked.

    ``repeatable``: as long as nothing of an answer was passed on, another server may be asked. ``broke_off``: the
    request may be why, so not many others. ``failure``: it speaks against the server. ``missing``: the server does not
    have the model. ``rest_s``: the server asked to be left alone for so long.
    """

    def __init__(
        self,
        error: ExpertRouterError,
        *,
        repeatable: bool = False,
        broke_off: bool = False,
        failure: bool = False,
        missing: bool = False,
        rest_s: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.repeatable = repeatable or broke_off
        self.broke_off = broke_off
        self.failure = failure or broke_off
        self.missing = missing
        self.rest_s = rest_s


class Failures:
    """Those of the server at ``address``, whose words never show the key.

    The settings' limits are named in the errors: ``connect_timeout_s`` and ``read_timeout_s``.
    """

    def __init__(self, address: str, api_key: str | None, connect_timeout_s: float, read_timeout_s: float) -> None:
        self.address = address
        self._api_key = api_key
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s

    def quoted(self, text: str) -> str:
        """The server's own words, fit for an error text: on one line, short, without the API key."""
        if self._api_key:
            text = text.replace(self._api_key, "***")
        text = " ".join(text.split())
        return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"

    def refusal(self, response: Response, complaint: Complaint, model: str) -> AttemptError:
        """What an answer that is not 200 means."""
        status, said = response.status, self.quoted(complaint.message)
        where = f"{self.address} answered HTTP {status}"
        if complaint.is_context_length and httpx2.codes.is_client_error(status):
            return AttemptError(too_long(said))
        match status:
            case 401 | 403:  # the server's words may quote a part of the key
                return AttemptError(
                    EngineError(f"{where}: it does not accept the API key. Set engine.api_key to one that it knows.")
                )
            case 404:
                error = (
                    f"{where}: it has no model {model!r}, or engine.base_url is not its API (most end in /v1). {said}"
                )
                return AttemptError(EngineError(error), missing=True)
            case 429 | 503:
                rest_s = retry_after_s(response.headers.get("retry-after", ""))
                full = OverloadedError(
                    f"{where}: it takes no more requests now; try again. {said}",
                    retry_after_s=DEFAULT_RETRY_AFTER_S if rest_s is None else rest_s,
                )
                return AttemptError(full, repeatable=True, failure=response.status >= SERVER_ERROR, rest_s=rest_s)
            case 408 | 504:
                slow = EngineTimeoutError(f"{where}: it was too slow. {said}")
                late = response.status >= SERVER_ERROR
                return AttemptError(slow, repeatable=late, failure=late)
            case _:
                return AttemptError(
                    EngineError(f"{where} for model {model!r}. {said}"),
                    repeatable=status == httpx2.codes.BAD_GATEWAY,
                    failure=status >= SERVER_ERROR,
                )

    def slow_check(self, within_s: float) -> AttemptError:
        slow = EngineTimeoutError(f"{self.address} did not say what it serves within {within_s:g} s. Check its load.")
        return AttemptError(slow, failure=True)

    @contextmanager
    def typed(self) -> Iterator[None]:
        """Turn what the HTTP client raises into what it means."""
        try:
            yield
        except ConnectTimeoutError as error:
            late = EngineTimeoutError(
                f"{self.address} did not accept a connection within {self._connect_timeout_s:g} s. "
                "Check that it is up and reachable, or set engine.base_url."
            )
            raise AttemptError(late, repeatable=True, failure=True) from error
        except SilenceError as error:
            silent = EngineTimeoutError(
                f"{self.address} was silent for {self._read_timeout_s:g} s. "
                "Check its load, or raise engine.read_timeout_s."
            )
            raise AttemptError(silent, failure=True) from error
        except ConnectError as error:
            reason = self.quoted(str(error))
            away = EngineError(f"{self.address} cannot be reached ({reason}). Start it, or set engine.base_url.")
            raise AttemptError(away, repeatable=True, failure=True) from error
        except BrokenAnswerError as error:
            reason = self.quoted(str(error))
            broken = EngineError(f"The answer of {self.address} broke off or is not valid: {reason}")
            raise AttemptError(broken, broke_off=True) from error


def too_long(said: str) -> ContextLengthError:
    return ContextLengthError(
        f"The conversation is too long for the model. {said} Shorten it, or ask for fewer max_tokens.",
        param="messages",
    )
