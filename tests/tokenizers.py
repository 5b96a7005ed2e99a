"""Tokenizers without a vocabulary, as hard to slice as real ones."""


class ByteTokenizer:
    """One token per byte: a character may take four."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        return bytes(token_ids).decode(errors="replace")


class PairTokenizer:
    """Two bytes a token: tokens straddle characters, names and tags."""

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        pairs = [256 + 256 * data[i] + data[i + 1] for i in range(0, len(data) - 1, 2)]
        return pairs + list(data[2 * len(pairs) :])

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        parts = [bytes(divmod(t - 256, 256)) if t >= 256 else bytes([t]) for t in token_ids]
        return b"".join(parts).decode(errors="replace")
