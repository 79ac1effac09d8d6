"""Token ids to text by a table, for tokenizers whose tokens are bytes.

The library decodes on threads of its own: 0.05 ms, but several times as much when it was idle for a step, and on busy
cores they take the processor from the step that runs meanwhile. A third of the speed of one request was lost by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``decode`` is ``openvino_genai.Tokenizer``'s: control tokens are left out, and bytes that are no character.

    ``control`` are the tokens that have no text, as they are written.
    """

    decode: Callable[[list[int]], str]
    control: frozenset[str]


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Each token is compared with what the tokenizer makes of it; where one is not its bytes, that decodes on."""
    pieces: dict[int, bytes] = {token: piece for piece, token in tokenizer.get_vocab().items()}
    texts: list[str] = tokenizer.decode([[token] for token in pieces])
    control = set()
    plain = True
    for (token, piece), text in zip(list(pieces.items()), texts, strict=True):
        whole = piece.decode(errors="ignore")
        if whole and not text:
            pieces[token] = b""
            control.add(whole)
        elif text != whole:
            plain = False

    def by_table(ids: list[int]) -> str:
        return b"".join([pieces.get(token, b"") for token in ids]).decode(errors="ignore")

    return Vocabulary(by_table if plain else lambda ids: str(tokenizer.decode(ids)), frozenset(control))
