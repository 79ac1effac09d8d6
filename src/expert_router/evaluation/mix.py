"""Which questions a load consists of: kinds by their shares, and in each kind all as often, or some far more often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from expert_router.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from expert_router.data.labelled import LabelledQuestion


def read_mix(text: str, examples: Sequence[LabelledQuestion]) -> dict[str, float]:
    """``sleep=0.4,cars=0.6`` as shares by the examples' ``kind``, which come to 1. Raises ``ConfigError``."""
    known = sorted({example.kind for example in examples})
    shares: dict[str, float] = {}
    for part in text.split(","):
        kind, _, share = part.partition("=")
        try:
            shares[kind.strip()] = float(share)
        except ValueError:
            raise ConfigError(f"--mix takes shares like sleep=0.4,cars=0.6, not {part.strip()!r}.") from None
    if unknown := [kind for kind in shares if kind not in known]:
        raise ConfigError(f"--mix does not know {', '.join(unknown)}. Kinds of questions: {', '.join(known)}.")
    total = sum(shares.values())
    if not (np.isfinite(total) and min(shares.values()) >= 0 and total > 0):
        raise ConfigError("--mix takes shares from 0 on, one of them above 0.")
    return {kind: share / total for kind, share in shares.items() if share}


def draw(
    examples: Sequence[LabelledQuestion], shares: Mapping[str, float], seed: int, *, zipf: bool
) -> Iterator[LabelledQuestion]:
    """Questions without end, the same for the same seed; by ``zipf``'s law the nth of a kind 1/n as often as the first.

    Which ones are popular is the seed's.
    """
    rng = np.random.default_rng(seed)
    pools = []
    for kind in shares:
        pool = [example for example in examples if example.kind == kind]
        weights = 1 / np.arange(1, len(pool) + 1) if zipf else np.ones(len(pool))
        pools.append((pool, rng.permutation(weights / weights.sum())))
    while True:
        pool, popularity = pools[rng.choice(len(pools), p=list(shares.values()))]
        yield pool[rng.choice(len(pool), p=popularity)]
