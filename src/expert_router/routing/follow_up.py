"""Whether a turn goes on with what was said before, and what that was.

By its wording, how little it says, how nearly it is claimed, and what it means: logistic regression on turns of
written dialogues that no expert claims for sure (``training.router.fit_follow_up``). Remarks and new subjects that
nobody covers do not go on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from expert_router.conversation import (
    LEANS_BACK,
    content_words,
    goes_back,
    is_courtesy,
    leans_back,
    plain,
    points_back,
    says_little,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from expert_router.routing.head import LinearHead
    from expert_router.types import Thresholds

GOES_ON = 0.55
"""So probable it must be that a turn goes on: to stay with the wrong expert is worse than to leave the right one."""
SURELY_NOBODYS = 0.95
"""Without a head, a turn of few words that is less surely for no expert may go on with the turn before it."""
SURELY_CLAIMED = 0.88
"""A turn that an expert claims less surely may still go on with what another was asked."""
FARTHEST_BACK = 12
"""So many turns are looked through for a subject that is gone back to."""

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
"""Beside the turn's vector."""
VECTOR_SCALE = 2.0
"""A vector's numbers are small: unscaled, the penalty on their weights would leave them nothing to say."""


@dataclass(frozen=True, slots=True)
class FollowUps:
    """``probabilities`` gives every expert's and none-of-them's of a plain text, ``encode`` its vector of length one.

    Without ``head`` a rule of wording tells what goes on.
    """

    head: LinearHead | None
    thresholds: Thresholds
    probabilities: Callable[[str], list[float]]
    encode: Callable[[str], NDArray[np.float32]]

    def about(self, turn: str, alone: Sequence[float], history: Sequence[str]) -> str:
        """What a turn goes on with, empty for nothing; ``alone`` is how it scores by itself."""
        if not history or self._stands_alone(alone):
            return ""
        if goes_back(turn) and (earlier := self._gone_back_to(turn, history)):
            return earlier
        if not self.goes_on(turn, alone):
            return ""
        subject = next(self._subjects(history), "")
        return "" if self._agree(alone, subject) else subject

    def goes_on(self, turn: str, alone: Sequence[float]) -> bool:
        """Whether a turn that may go on with what was said before does."""
        if self._stands_alone(alone):
            return False
        claim, none = max(alone[:-1]), alone[-1]
        if self.head is None:
            return points_back(turn) or (says_little(turn) and none < SURELY_NOBODYS)
        features_1F = follow_up_features(turn, claim, none, self.encode(plain(turn)))[None, :]
        return bool(self.head.probabilities(features_1F)[0, 0] > GOES_ON)

    def _stands_alone(self, alone: Sequence[float]) -> bool:
        return surely_claimed(self.thresholds, max(alone[:-1]), alone[-1])

    def _claimed(self, alone: Sequence[float]) -> bool:
        return self.thresholds.claimed(max(alone[:-1]), alone[-1])

    def _agree(self, alone: Sequence[float], subject: str) -> bool:
        """Whether the turn by itself is claimed by whom its subject needs most: then it says enough."""
        if not subject or not self._claimed(alone):
            return False
        of_subject = self.probabilities(subject)[:-1]
        return int(np.argmax(of_subject)) == int(np.argmax(alone[:-1]))

    def _subjects(self, history: Sequence[str]) -> Iterator[str]:
        """What was spoken about, the latest first: each a turn that stands and what followed on it, as one text.

        Remarks that no expert claims are passed over: they neither begin a subject nor belong to one.
        """
        turns: list[str] = []
        for turn in map(plain, (turn for turn in reversed(history) if not is_courtesy(turn))):
            alone = self.probabilities(turn)
            if not asks(turn) and not self._claimed(alone):
                continue
            turns.insert(0, turn)
            if not leans_back(turn) and not self.goes_on(turn, alone):
                yield told(turns)
                turns = []
        if turns:
            yield told(turns)

    def _gone_back_to(self, turn: str, history: Sequence[str]) -> str:
        """Of the subjects before the latest that an expert covers, the one most like the turn; empty without any."""
        _, *earlier = [*self._subjects(history[-FARTHEST_BACK:])] or [""]
        covered = [s for s in earlier if max(self.probabilities(s)[:-1]) >= self.thresholds.accept]
        vector_D = self.encode(plain(turn))
        return max(covered, key=lambda subject: float(self.encode(subject) @ vector_D), default="")


def surely_claimed(thresholds: Thresholds, claim: float, none: float) -> bool:
    """Whether an expert claims a turn so surely that it needs nothing of what was said before."""
    return claim >= SURELY_CLAIMED and thresholds.claimed(claim, none)


def asks(turn: str) -> bool:
    """Whether a turn is worded as a question or a bid: "explain it", "which one", "more?"."""
    return "?" in turn or _ASKS.match(turn) is not None or _BIDS.match(turn) is not None


def follow_up_features(turn: str, claim: float, none: float, vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shape (``FEATURES`` + D,); ``claim`` is an expert's largest probability of the turn alone, ``none`` nobody's.

    ``vector_D`` is the plain turn's.
    """
    asked = plain(turn)
    said, question, leans = len(content_words(asked)), "?" in turn, LEANS_BACK.search(asked) is not None
    wording = [
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
    ]
    return np.concatenate([np.array(wording, dtype=np.float32), vector_D * np.float32(VECTOR_SCALE)])


def _log_odds(probability: float) -> float:
    """Bounded, and about as large as the other features."""
    return float(np.log((probability + 1e-4) / (1 - probability + 1e-4)) / 4)
