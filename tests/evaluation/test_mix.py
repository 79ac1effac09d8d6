from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from expert_router.data.labelled import LabelledQuestion
from expert_router.errors import ConfigError
from expert_router.evaluation.mix import draw, read_mix

EXAMPLES = [
    LabelledQuestion(f"{kind} {number}", frozenset(), kind) for kind in ("sleep", "other") for number in range(50)
]
SHARES = {"sleep": 0.75, "other": 0.25}


def test_shares_come_to_one_and_what_is_none_is_said() -> None:
    assert read_mix("sleep=3, other=1", EXAMPLES) == SHARES
    for mix, said in [
        ("sleep", "like sleep"),
        ("a=1", "Kinds .*: other, sleep"),
        ("sleep=-1", "from 0"),
        ("sleep=0", "above 0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            read_mix(mix, EXAMPLES)


@pytest.mark.parametrize(("zipf", "ratio"), [(True, 2.0), (False, 1.0)])
def test_kinds_are_asked_by_their_shares_and_by_zipfs_law_some_questions_far_more_often(
    zipf: bool, ratio: float
) -> None:
    drawn = list(islice(draw(EXAMPLES, SHARES, 3, zipf=zipf), 8000))
    assert drawn[:50] == list(islice(draw(EXAMPLES, SHARES, 3, zipf=zipf), 50))
    sleep = [question.query for question in drawn if question.kind == "sleep"]
    assert 0.72 < len(sleep) / len(drawn) < 0.78
    (_, first), (_, second) = Counter(sleep).most_common(2)
    assert first / second == pytest.approx(ratio, abs=0.3)
