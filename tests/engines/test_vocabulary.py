"""The table that decodes; that it agrees with a real tokenizer is in test_openvino.py."""

from __future__ import annotations

from expert_router.engines.vocabulary import vocabulary_of


class Tokenizer:
    """Its tokens are bytes, but for what ``texts`` says otherwise of a token that is decoded alone."""

    def __init__(self, vocabulary: list[bytes], texts: dict[int, str]) -> None:
        self._vocabulary = vocabulary
        self._texts = texts
        self.decoded = 0

    def get_vocab(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self._vocabulary)}

    def decode(self, ids: list[int] | list[list[int]]) -> str | list[str]:
        self.decoded += 1
        return [self._text(row) for row in ids] if isinstance(ids[0], list) else self._text(ids)  # type: ignore[arg-type]

    def _text(self, ids: list[int]) -> str:
        return "".join(self._texts.get(token, self._vocabulary[token].decode(errors="ignore")) for token in ids)


VOCABULARY = [b"<|end|>", b"caf", "é".encode()[:1], "é".encode()[1:], b" au"]


def test_bytes_make_characters_and_special_tokens_no_text() -> None:
    tokenizer = Tokenizer(VOCABULARY, {0: ""})
    decode = vocabulary_of(tokenizer).decode
    assert decode([1, 2, 3, 4, 0]) == "café au"
    assert decode([1, 2]) == "caf"
    assert decode([3, 4, 99]) == " au"  # 99: a row of padding that the model has and its vocabulary has not
    assert decode([]) == ""
    assert tokenizer.decoded == 1
    assert vocabulary_of(tokenizer).control == {"<|end|>"}


def test_where_a_token_is_not_its_bytes_the_tokenizer_itself_decodes() -> None:
    tokenizer = Tokenizer(["▁au".encode(), b"caf"], {0: " au"})
    decode = vocabulary_of(tokenizer).decode
    assert decode([1, 0]) == "caf au"
    assert tokenizer.decoded == 2
