# SPDX-License-Identifier: Apache-2.0
"""
Learning the codebook: k-means to begin with, running means afterwards (van den Oord et al., "Neural Discrete
Representation Learning", 2017, appendix A.1), new places for entries that are hardly used.
"""

from typing import Any

import torch

from ..model.modeling_vqgan import PaiPainterVQCodebook
from .arguments import VQGANTrainingArguments
from .order import seed_of

_HARDLY_USED = 1e-6
_CHUNK = 4096  # rows of a table of distances; all at once, 16,384 entries would need 40 GB


class CodebookLearner:
    """
    Moves a codebook's entries to the means of the latents that chose them. Gradients never reach it. All processes call
    it with the same gathered latents and stay equal without talking; for that the running means are kept on the CPU: a
    GPU adds up in any order.
    """

    def __init__(self, codebook: PaiPainterVQCodebook, training: VQGANTrainingArguments):
        self.entries = codebook.embedding.weight.requires_grad_(False)
        self.decay, self.restart_below = training.codebook_decay, training.restart_below
        self.first_free, self.seed = int(training.blank_code), training.seed
        self.uses = torch.zeros(len(self.entries))
        self.sums = self._on_cpu().clone()
        self.started = False

    @torch.no_grad()
    def start(self, latents: torch.Tensor, blank: torch.Tensor) -> None:
        """Puts the entries at k-means centres of `latents` (n, embed_dim), except for those of plain white patches."""
        if self.first_free:
            if blank.any():
                self.entries[0] = latents[blank].mean(0)
            latents = latents[~blank]
        count = len(self.entries) - self.first_free
        if len(latents) < count:
            raise ValueError(f"{len(latents)} patches of pictures are too few for {count} `num_embeddings`.")
        self.go_on_from(torch.cat([self.entries[: self.first_free], k_means(latents, count, seed_of(self.seed, 1))]))

    @torch.no_grad()
    def go_on_from(self, entries: torch.Tensor) -> None:
        """Begins the running means at these entries (num_embeddings, embed_dim)."""
        self.entries.copy_(entries)
        self.uses.zero_()
        self.started = True

    @torch.no_grad()
    def update(self, latents: torch.Tensor, image_tokens: torch.Tensor, errors: torch.Tensor, step: int) -> int:
        """
        One step of the running means from all processes' `latents` (n, embed_dim), what they chose (n,), and the errors
        of their patches (n,), where dead entries get new places. Returns the number of those.
        """
        latents, image_tokens, errors = latents.float().cpu(), image_tokens.cpu(), errors.float().cpu()
        counts = torch.bincount(image_tokens, minlength=len(self.entries)).float()
        if not self.uses.any():
            # As if it had always been so: from small numbers, an entry would jump to its first batch's mean.
            self.uses.copy_(counts.clamp_min(counts.mean()))
            self.sums.copy_(self._on_cpu() * self.uses[:, None])
        self.uses.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, image_tokens, latents), 1 - self.decay)
        dead = self.uses < self.restart_below * self.uses.mean()
        dead[: self.first_free] = False
        # An entry unused for long (only the blank one isn't restarted) stays where it is.
        moving = ~dead & (self.uses > _HARDLY_USED)
        entries = torch.where(moving[:, None], self.sums / self.uses.clamp_min(_HARDLY_USED)[:, None], self._on_cpu())
        # If the loss has become nan, the run is about to say so; the draw must not fail before.
        weights = errors.nan_to_num(0.0, 0.0, 0.0) * (image_tokens >= self.first_free)
        places = dead.nonzero().flatten()[: int((weights > 0).sum())]
        if len(places):
            generator = torch.Generator().manual_seed(seed_of(self.seed, 2, step))
            entries[places] = latents[torch.multinomial(weights, len(places), generator=generator)]
            self.uses[places] = self.uses.mean()
            self.sums[places] = entries[places] * self.uses[places, None]
        self.entries.copy_(entries)
        return len(places)

    def _on_cpu(self) -> torch.Tensor:
        return self.entries.detach().float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints; the entries themselves are the VQGAN's."""
        return {"uses": self.uses, "sums": self.sums, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a checkpoint's state."""
        self.uses.copy_(state["uses"])
        self.sums.copy_(state["sums"])
        self.started = state["started"]


def k_means(latents: torch.Tensor, count: int, seed: int, iterations: int = 15) -> torch.Tensor:
    """Centres (count, embed_dim) of `latents` (n, embed_dim), which start at some of them."""
    chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))[:count]
    centres = latents[chosen.to(latents.device)].clone()
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(chunk, centres).argmin(1) for chunk in latents.split(_CHUNK)])
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, latents)
        used = sizes > 0
        centres[used] = sums[used] / sizes[used, None]
    return centres
