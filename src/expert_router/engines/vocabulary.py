"""Token ids to text by a table, for tokenizers whose tokens are bytes.

The library decodes on threads of its own: 0.05 ms, but several times as much when it was idle for a step, and on busy
cores they take the processor from the step that runs meanwhile. A third of the speed of one request was lost by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """As ``openvino_genai.Tokenizer.decode`` does it: special tokens are left out, and bytes that are no character.

    Each token is compared with what it makes of it; where one is not its bytes, the tokenizer decodes as before.
    """
    pieces: dict[int, bytes] = {token: piece for piece, token in tokenizer.get_vocab().items()}
    texts: list[str] = tokenizer.decode([[token] for token in pieces])
    for (token, piece), text in zip(list(pieces.items()), texts, strict=True):
        whole = piece.decode(errors="ignore")
        if whole and not text:
            pieces[token] = b""  # a special one
        elif text != whole:
            return lambda ids: str(tokenizer.decode(ids))
    return lambda ids: b"".join([pieces.get(token, b"") for token in ids]).decode(errors="ignore")
