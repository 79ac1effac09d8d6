"""Everything that can go wrong, as one tree; the HTTP status is each error's wire form.

ExpertRouterError                     500
├── InvalidRequestError               400   code invalid_request; the caller can mend the request
│   ├── ContextLengthError            400   code context_length_exceeded
│   ├── UnknownModelError             404   code model_not_found
│   ├── UnknownDecisionError          404   code decision_not_found
│   ├── DecisionLogOffError           409   code decision_log_off
│   ├── FeedbackError                 422   code invalid_feedback; says nothing, or names nobody who could answer
│   └── BodyTooLargeError             413
├── AdminClosedError                  403   code admin_closed; the server has no admin key
├── UnauthorizedError                 401   code unauthorized; the admin key is missing or wrong
├── OverloadedError                   429   queue full; carries retry_after_s
├── EngineError                       502   the engine failed or answered nonsense
│   └── EngineTimeoutError            504   the engine did not answer in time
├── NotReadyError                     503   weights, router or expert not usable yet; says what to do
├── ConfigError                       -     a settings, manifest or registry mistake, found at start
├── WeightsError                      -     a weight file cannot be brought or does not have its hash
├── DataError                         -     a data file cannot be read; names file and line
└── TrainingError                     -     a training run cannot start or go on; says what to change

Inside the package these are raised, never returned and never printed; ``commands`` turns them into one line on
stderr and exit status 2, ``api`` into OpenAI's error object.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar


class ExpertRouterError(Exception):
    """Base of all errors that the package raises on purpose; its text is fit to be shown to a user."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequestError(ExpertRouterError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class ContextLengthError(InvalidRequestError):
    code = "context_length_exceeded"


class UnknownModelError(InvalidRequestError):
    status = 404
    code = "model_not_found"


class UnknownDecisionError(InvalidRequestError):
    status = 404
    code = "decision_not_found"


class DecisionLogOffError(InvalidRequestError):
    status = 409
    code = "decision_log_off"


class FeedbackError(InvalidRequestError):
    status = 422
    code = "invalid_feedback"


class BodyTooLargeError(InvalidRequestError):
    status = 413
    code = "body_too_large"


class AdminClosedError(ExpertRouterError):
    status = 403
    type = "permission_error"
    code = "admin_closed"


class UnauthorizedError(ExpertRouterError):
    status = 401
    type = "authentication_error"
    code = "unauthorized"


class OverloadedError(ExpertRouterError):
    status = 429
    type = "overloaded_error"
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[partial[OverloadedError], tuple[str]]:
        """It crosses the border of a process."""
        return partial(OverloadedError, retry_after_s=self.retry_after_s), (self.message,)


class EngineError(ExpertRouterError):
    status = 502
    type = "engine_error"
    code = "engine_failed"


class EngineTimeoutError(EngineError):
    status = 504
    code = "engine_timeout"


class NotReadyError(ExpertRouterError):
    status = 503
    type = "not_ready_error"
    code = "not_ready"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class ConfigError(ExpertRouterError):
    type = "config_error"


class WeightsError(ExpertRouterError):
    type = "weights_error"


class DataError(ExpertRouterError):
    type = "data_error"


class TrainingError(ExpertRouterError):
    type = "training_error"
