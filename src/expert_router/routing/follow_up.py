"""Whether a turn goes on with what was said before: by its wording, how little it says, how nearly it is claimed.

Logistic regression on turns of written dialogues that no expert claims for sure (``training.router.fit_follow_up``).
Remarks and new subjects that nobody covers do not go on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from expert_router.conversation import LEANS_BACK, content_words, plain

if TYPE_CHECKING:
    from numpy.typing import NDArray

_OPENING = (
    r"^\W*(?:(?:ok(?:ay)?|and|but|so|or|then|also|please|now|hm+|wow|oh|well|right|ha(?:ha)*|lol|yes|no|sorry)\b\W*)*"
)
_ASKS = re.compile(
    _OPENING + r"(?:one (?:more|last)(?: thing)?\W*)?(?:what|who|whom|whose|why|how|when|where|which|is|are|was|were|am"
    r"|do|does|did|can|could|would|will|should|shall|may|might|must|has|have|had|until|since|in|on|at|from|to|for)"
    r"(?:n'?t|'?s)?\b",
    re.IGNORECASE,
)
_BIDS = re.compile(
    _OPENING
    + r"(?:explain|tell|give|show|describe|list|compare|say|name|simpler|shorter|more|again|back|continue|go on"
    r"|elaborate|expand|summari[sz]e|put|make|repeat)\b",
    re.IGNORECASE,
)
_CONNECTS = re.compile(r"^\W*(?:and|but|or|so|then|also|what about|how about)\b", re.IGNORECASE)
_REMARKS = re.compile(
    _OPENING + r"(?:i|i'?m|i'?ll|i'?ve|my|we|she|he|they|that'?s|that|you|this|poor|sounds)\b", re.IGNORECASE
)
MOST_WORDS, MOST_CONTENT = 20, 6
FEATURES = 11


def follow_up_features(turn: str, claim: float, none: float) -> NDArray[np.float32]:
    """Shape (``FEATURES``,); the turn alone: ``claim`` is an expert's largest probability, ``none`` nobody's."""
    asked = plain(turn)
    said, question, leans = len(content_words(asked)), "?" in turn, LEANS_BACK.search(asked) is not None
    return np.array(
        [
            question,
            _ASKS.match(turn) is not None,
            _BIDS.match(turn) is not None,
            _CONNECTS.match(turn) is not None,
            not question and _REMARKS.match(turn) is not None,
            "!" in turn or ":)" in turn,
            leans,
            min(said, MOST_CONTENT) / MOST_CONTENT,
            min(len(asked.split()), MOST_WORDS) / MOST_WORDS,
            _log_odds(claim),
            _log_odds(none) if said and not leans else 0.0,
        ],
        dtype=np.float32,
    )


def _log_odds(probability: float) -> float:
    """Bounded, and about as large as the other features."""
    return float(np.log((probability + 1e-4) / (1 - probability + 1e-4)) / 4)
