"""The keys of a request's blocks: from its tokens, and from the content of placeholder tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvtile import TokenHasher, TokenSequence
from kvtile.vllm._content import digest_of_embeddings, digest_of_feature

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from kvtile.vllm._messages import Keys


class RequestKeys:
    """The keys of one request's full blocks, by rank.

    A block depends on the content that overlaps it, and through its parent's key on everything before. Adapter and salt
    count from the start, an image from its first token. There are no keys from the first unknown content on.
    """

    def __init__(self, request: Request, hashers: Mapping[int, TokenHasher], common: list[bytes]) -> None:
        """``common``: the extra keys of all blocks, besides the salt."""
        self._request = request
        self._hashers = dict(hashers)
        self._common = [*common, *([b"salt:" + request.cache_salt.encode()] if request.cache_salt else [])]
        # Content is digested once; a session may add more.
        self._contents: list[bytes | None] = []
        self._page_size = next(iter(self._hashers.values())).page_size
        self._make()

    def _make(self) -> None:
        request = self._request
        made = {hasher: TokenSequence(hasher, extra=self._common) for hasher in self._hashers.values()}
        self._sequences = {rank: made[hasher] for rank, hasher in self._hashers.items()}
        self.limit: int | None = None
        features = request.mm_features or ()
        self._contents += [digest_of_feature(feature) for feature in features[len(self._contents) :]]
        for feature, content in zip(features, self._contents, strict=True):
            position = feature.mm_position
            if content is None:
                self._end_at(position.offset)
            else:
                self._mark(position.offset, position.offset + position.length, b"content:" + content)
        self._mark_embeddings()

    def _mark_embeddings(self) -> None:
        request = self._request
        rows = request.prompt_embeds
        if rows is None:
            return
        mask = request.prompt_is_token_ids
        for start in range(0, len(rows), self._page_size):
            end = min(start + self._page_size, len(rows))
            content = digest_of_embeddings(rows[start:end], None if mask is None else list(mask[start:end]))
            self._mark(start, end, b"embeddings:" + content)

    def _mark(self, start: int, end: int, content: bytes) -> None:
        for sequence in set(self._sequences.values()):
            sequence.mark(start, end, content)

    def _end_at(self, position: int) -> None:
        block = position // self._page_size
        self.limit = block if self.limit is None else min(self.limit, block)

    def follow(self) -> int | None:
        """Updates the keys after a session's new input, which may replace its last tokens. Returns how many leading
        blocks are unchanged; None if nothing has changed."""
        request = self._request
        old = next(iter(self._sequences.values()))
        tokens = list(request.all_token_ids[: len(old)])
        if old.tokens == tokens and len(request.mm_features or ()) == len(self._contents):
            return None
        before = {rank: sequence.keys for rank, sequence in self._sequences.items()}
        self._make()
        after = self.of(len(next(iter(before.values()))))
        same = [
            next((at for at, (a, b) in enumerate(zip(before[rank], after[rank], strict=False)) if a != b), len(after[rank]))
            for rank in before
        ]
        return min(same)

    def of(self, blocks: int) -> Keys:
        """The keys of the leading blocks, up to the first unknown content."""
        if self.limit is not None:
            blocks = min(blocks, self.limit)
        tokens = self._request.all_token_ids
        keys: dict[TokenSequence, list[bytes]] = {}
        for sequence in self._sequences.values():
            if sequence not in keys:
                sequence.extend(tokens[len(sequence) : blocks * self._page_size])
                keys[sequence] = sequence.keys[:blocks]
        return {rank: keys[sequence] for rank, sequence in self._sequences.items()}
