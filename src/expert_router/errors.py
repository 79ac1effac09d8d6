"""Everything that can go wrong, as one tree; the HTTP status is each error's wire form.

ExpertRouterError                     500
├── InvalidRequestError               400   code invalid_request; the caller can mend the request
│   ├── ContextLengthError            400   code context_length_exceeded
│   ├── UnknownModelError             404   code model_not_found
│   ├── UnknownDecisionError          404   code decision_not_found
│   ├── DecisionLogOffError           409   code decision_log_off
│   ├── FeedbackError                 422   code invalid_feedback; says nothing, or names nobody who could answer
│   ├── SlowRequestError              408   code slow_request; its head or body did not come in time
│   ├── BodyTooLargeError             413
│   └── HeadTooLargeError             431   code head_too_large
├── AdminClosedError                  403   code admin_closed; the server has no admin key
├── ScopeError                        403   code insufficient_scope; the key may ask, but not do this
├── UnauthorizedError                 401   code unauthorized; the key is missing or wrong
├── OverloadedError                   429   queue full; carries retry_after_s
│   └── RateLimitError                429   code rate_limit_exceeded; a limit of the key
├── EngineError                       502   the engine failed or answered nonsense
│   ├── EngineTimeoutError            504   the engine did not answer in time
│   └── UpstreamsDownError            503   no server behind the engine can be asked; carries retry_after_s
├── RequestTimeoutError               504   code request_timeout; it took longer than a request may
├── BusyError                         503   code busy; as many connections as there may be
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

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


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


class HeadTooLargeError(InvalidRequestError):
    status = 431
    code = "head_too_large"


class SlowRequestError(InvalidRequestError):
    status = 408
    code = "slow_request"


class AdminClosedError(ExpertRouterError):
    status = 403
    type = "permission_error"
    code = "admin_closed"


class ScopeError(ExpertRouterError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"


class UnauthorizedError(ExpertRouterError):
    status = 401
    type = "authentication_error"
    code = "unauthorized"


class OverloadedError(ExpertRouterError):
    status = 429
    type = "overloaded_error"
    code = "overloaded"

    retry_after_s: float

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)

    def __reduce__(self) -> tuple[partial[OverloadedError], tuple[str]]:
        """It crosses the border of a process."""
        return partial(type(self), retry_after_s=self.retry_after_s), (self.message,)


class RateLimitError(OverloadedError):
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class EngineError(ExpertRouterError):
    status = 502
    type = "engine_error"
    code = "engine_failed"


class EngineTimeoutError(EngineError):
    status = 504
    code = "engine_timeout"


class UpstreamsDownError(EngineError):
    status = 503
    code = "upstreams_down"


class RequestTimeoutError(ExpertRouterError):
    status = 504
    code = "request_timeout"


class BusyError(ExpertRouterError):
    status = 503
    type = "overloaded_error"
    code = "busy"


class NotReadyError(ExpertRouterError):
    status = 503
    type = "not_ready_error"
    code = "not_ready"


class ConfigError(ExpertRouterError):
    type = "config_error"


class WeightsError(ExpertRouterError):
    type = "weights_error"


class DataError(ExpertRouterError):
    type = "data_error"


class TrainingError(ExpertRouterError):
    type = "training_error"


def error_code(error: BaseException) -> str:
    """What tells an error from others, on the wire and in metrics; what was not raised on purpose is one."""
    return (error.code or error.type) if isinstance(error, ExpertRouterError) else "internal_error"
