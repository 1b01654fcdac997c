# SPDX-License-Identifier: Apache-2.0
"""
Speculative decoding of a single picture: several image tokens per pass, the same tokens.

With one picture, a step takes as long as memory takes to deliver the weights; a few more positions in the same pass
take hardly longer. So the next tokens are drafted, and a pass over the draft gives the logits after each of them. A
position's noise doesn't depend on the tokens before it (see [`GumbelSampler`]), so it is known beforehand which token
given logits draw. The first token is drawn from correct logits. If it equals the draft, then the logits after it are
correct, too, the next token is drawn from them, and so on up to the first draft token that is rejected.

The draft is Jacobi's iteration: what the last pass would have drawn after the rejected token. Many of these tokens are
right, since the noise decides as much as the tokens before. (Speculative Jacobi decoding: Teng et al. 2024,
https://arxiv.org/abs/2410.01699, there with another rule of acceptance.)
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..model.sampling_pai_painter import GumbelSampler
from .decoding import DecodingLoop, StopWhen
from .speed import PaintingSpeed


class SpeculativeDecodingLoop(DecodingLoop):
    """
    Draws the image tokens of one picture that [`DecodingLoop`] draws, up to how products of more rows are rounded.

    Attributes:
        passes (`int`): Of the last picture: how often all layers were gone through, the caption's pass included.

    Args:
        model ([`PaiPainterForImageGeneration`]): See [`DecodingLoop`].
        speed ([`PaintingSpeed`]): Its `num_draft_tokens` is at least 1.
    """

    def __init__(self, model: PreTrainedModel, speed: PaintingSpeed):
        super().__init__(model, 1, speed, positions=1 + speed.num_draft_tokens)
        self.num_draft_tokens, self.passes = speed.num_draft_tokens, 0

    @torch.no_grad()
    def write(
        self, ids: torch.Tensor, copies: int, sampler: GumbelSampler, stop_when: Sequence[StopWhen] = ()
    ) -> torch.Tensor:
        """
        See [`DecodingLoop.write`]. `stop_when` is called after every accepted token.

        Raises:
            ValueError: if there is more than one picture.
        """
        if len(ids) * copies != 1:
            raise ValueError(f"Speculative decoding is for one picture at a time, got {len(ids) * copies}.")
        position, length, text_length = ids.shape[1], self.config.max_position_embeddings, self.config.text_length
        written = torch.cat([ids, ids.new_empty(1, length - position)], dim=1)
        logits, self.passes = self._begin(ids, 1), 1  # of `position`, and of those after it if the draft is accepted
        draft = ids.new_empty(0)
        try:
            while True:
                drawn = sampler.draw_ahead(logits, position - text_length, self.num_draft_tokens)
                rejected = (drawn[: len(draft)] != draft).nonzero()
                # The token drawn in place of a rejected one is right, and so is the one after a whole draft.
                right = int(rejected[0]) + 1 if len(rejected) else len(logits)
                for number in range(1, right + 1):
                    written[:, position] = drawn[number - 1]
                    position += 1
                    told = [stop(written[:, :position]) for stop in stop_when]
                    if any(told) or position == length:
                        sampler.accept(logits[:number], drawn[:number])
                        return written[:, text_length:position]
                sampler.accept(logits[:right], drawn[:right])
                draft = self._draft(drawn[right:], length - position)
                end = position + len(draft)
                written[0, position:end] = draft
                logits = self._all_logits(written[:, position - 1 : end], position - 1)
                self.passes += 1
        finally:
            self.caches = []

    def _draft(self, drawn: torch.Tensor, most: int) -> torch.Tensor:
        """The next tokens, at most this many, drawn from logits that follow a rejected token or are taken once more."""
        return drawn[: min(self.num_draft_tokens, most)]
