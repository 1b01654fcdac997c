# SPDX-License-Identifier: Apache-2.0
"""
Writing one picture's codes several at a time, the same codes.

With one picture, a step takes as long as memory takes to deliver the weights; a few more positions in the same pass
take hardly longer. So the next codes are guessed, and a pass over the guesses gives the logits after each of them. A
position's noise doesn't depend on the codes before it (see [`GumbelSampler`]), so it is known beforehand which code
given logits draw. The first code is drawn from right logits. If it is the one that was guessed, then so are the logits
after it, the next code is drawn from them, and so on until a guess was wrong.

Guessed is by Jacobi's iteration: what the last pass would have drawn after the wrong guess. Many of these codes are
right, since the noise decides as much as the codes before. (Speculative Jacobi decoding: Teng et al. 2024,
https://arxiv.org/abs/2410.01699, there with another rule of acceptance.)
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..model.sampling_pai_painter import GumbelSampler
from .decoding import DecodingLoop, StopWhen
from .speed import PaintingSpeed

__all__ = ["SpeculativeDecodingLoop"]


class SpeculativeDecodingLoop(DecodingLoop):
    """
    Writes the codes of one picture that [`DecodingLoop`] writes, up to how products of more rows are rounded.

    Attributes:
        passes (`int`): Of the last picture: how often all layers were gone through, the caption's pass included.

    Args:
        model ([`PaiPainterForImageGeneration`]): See [`DecodingLoop`].
        speed ([`PaintingSpeed`]): Its `guess_ahead` is at least 1.
    """

    def __init__(self, model: PreTrainedModel, speed: PaintingSpeed):
        super().__init__(model, 1, speed, positions=1 + speed.guess_ahead)
        self.guess_ahead, self.passes = speed.guess_ahead, 0

    @torch.no_grad()
    def write(
        self, ids: torch.Tensor, copies: int, sampler: GumbelSampler, stop_when: Sequence[StopWhen] = ()
    ) -> torch.Tensor:
        """
        See [`DecodingLoop.write`]. What is in `stop_when` is told every token, one after another, and no guesses.

        Raises:
            ValueError: if there is more than one picture.
        """
        if len(ids) * copies != 1:
            raise ValueError(f"Tokens are guessed for one picture at a time, got {len(ids) * copies}.")
        position, length, text_length = ids.shape[1], self.config.max_position_embeddings, self.config.text_length
        written = torch.cat([ids, ids.new_empty(1, length - position)], dim=1)
        logits, self.passes = self._begin(ids, 1), 1  # of `position`, and of those after it if guesses hold
        guesses = ids.new_empty(0)
        try:
            while True:
                drawn = sampler.draw_ahead(logits, position - text_length, self.guess_ahead)
                wrong = (drawn[: len(guesses)] != guesses).nonzero()
                right = int(wrong[0]) + 1 if len(wrong) else len(logits)  # the token after right guesses is right, too
                for number in range(1, right + 1):
                    written[:, position] = drawn[number - 1]
                    position += 1
                    told = [stop(written[:, :position]) for stop in stop_when]
                    if any(told) or position == length:
                        sampler.accept(logits[:number], drawn[:number])
                        return written[:, text_length:position]
                sampler.accept(logits[:right], drawn[:right])
                guesses = self._guess(drawn[right:], length - position)
                end = position + len(guesses)
                written[0, position:end] = guesses
                logits = self._all_logits(written[:, position - 1 : end], position - 1)
                self.passes += 1
        finally:
            self.caches = []

    def _guess(self, drawn: torch.Tensor, most: int) -> torch.Tensor:
        """The next tokens, at most this many, drawn from logits that follow a wrong guess or are taken once more."""
        return drawn[: min(self.guess_ahead, most)]
