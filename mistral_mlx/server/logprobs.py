"""Tokens and their log-probabilities as the two APIs tell them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mistral_mlx.completion import Chunk
from mistral_mlx.engine.choice import Token
from mistral_mlx.server.schema import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob
from mistral_mlx.text.decoder import StreamDecoder
from mistral_mlx.text.tokenizer import Tokenizer

# JSON has no infinity.
_LEAST = -9999.0


class Names:
    """What tokens are called: their text, the name of a control token, or the bytes of a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._control = {i: name for name, i in tokenizer.control.items()}

    def data(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        return self._tokenizer.token_bytes(token)

    def of(self, token: int) -> str:
        """A name that no other token has, but for those that stand for the same text."""
        data = self.data(token)
        if not data:
            return self._control.get(token, f"<{token}>")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(names: Names, chunks: Sequence[Chunk], stop_ids: frozenset[int]) -> ChatLogprobs:
    """Those of an answer, or of a piece of it; a token that only ends it is not told."""

    def told(token: int, logprob: float) -> TopLogprob:
        return TopLogprob(token=names.of(token), logprob=max(logprob, _LEAST), bytes=list(names.data(token)))

    return ChatLogprobs(
        content=[
            TokenLogprob(**dict(told(t.id, t.logprob)), top_logprobs=[told(i, p) for i, p in t.top.items()])
            for t in tokens_of(chunks)
            if t.id not in stop_ids
        ],
        refusal=None,
    )


def tokens_of(chunks: Sequence[Chunk]) -> Iterator[Token]:
    """The tokens that were sampled for them."""
    for chunk in chunks:
        tops: Sequence[dict[int, float]] = chunk.top_logprobs or [{}] * len(chunk.tokens)
        yield from map(Token, chunk.tokens, chunk.logprobs, tops)


class TextScores:
    """The log-probabilities of a text, told piece by piece, and where in it each token begins."""

    def __init__(self, names: Names, tokenizer: Tokenizer, *, continues: bool) -> None:
        """Start a text.

        Args:
            continues: it carries on another, rather than begin one.
        """
        self._names = names
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._offset = 0

    def prompt(self, ids: Sequence[int], scores: Sequence[Token], top: int) -> TextLogprobs:
        """Those of a prompt, whose first token follows nothing."""
        told = self.of([Token(ids[0], 0.0, {}), *scores], top)
        told.token_logprobs[0] = told.top_logprobs[0] = None
        return told

    def of(self, tokens: Sequence[Token], top: int) -> TextLogprobs:
        """Those of tokens that come next, with so many of the likeliest at each step, and the token itself."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.feed(token.id))
        return TextLogprobs(
            tokens=[self._names.of(token.id) for token in tokens],
            token_logprobs=[max(token.logprob, _LEAST) for token in tokens],
            top_logprobs=[self._top(token) if top else None for token in tokens],
            text_offset=offsets,
        )

    def _top(self, token: Token) -> dict[str, float]:
        likeliest = {**token.top, token.id: token.logprob}
        return {self._names.of(i): max(p, _LEAST) for i, p in likeliest.items()}
