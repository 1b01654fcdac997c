# SPDX-License-Identifier: Apache-2.0
"""
Learning the codebook: k-means to begin with, running means afterwards, new places for codes that nobody uses.

The running means are those of van den Oord et al., "Neural Discrete Representation Learning" (2017), appendix A.1.
"""

import torch

from ..modeling_vqgan import PaiPainterVQCodebook
from .order import seed_of

__all__ = ["CodebookLearner"]


class CodebookLearner:
    """
    Moves a codebook's entries to the means of the latents that chose them. Gradients never reach it.

    All processes must call it with the same gathered latents; they then stay equal without talking.

    Args:
        codebook: whose `embedding.weight` (num_embeddings, embed_dim) is moved.
        decay: of the running means, for each step.
        restart_below: codes whose running use is below this share of the mean use get a new place.
        blank_code: code 0 is kept for plain white patches; it is neither restarted nor part of k-means.
        seed: fixes k-means and restarts.
    """

    def __init__(
        self, codebook: PaiPainterVQCodebook, decay: float, restart_below: float, blank_code: bool, seed: int
    ):
        self.entries = codebook.embedding.weight
        self.entries.requires_grad_(False)
        self.decay, self.restart_below, self.first_free, self.seed = decay, restart_below, int(blank_code), seed
        self.uses = torch.ones(len(self.entries), device=self.entries.device)
        self.sums = self.entries.detach().clone().float()
        self.started = False

    @torch.no_grad()
    def start(self, latents: torch.Tensor, blank: torch.Tensor, iterations: int = 15) -> None:
        """
        Puts the entries at the k-means centres of `latents`.

        Args:
            latents (`torch.FloatTensor` of shape `(n, embed_dim)`): n well above the number of codes.
            blank (`torch.BoolTensor` of shape `(n,)`): which of them are plain white patches.
        """
        if self.first_free:
            if blank.any():
                self.entries[0] = latents[blank].mean(0)
            latents = latents[~blank]
        count = len(self.entries) - self.first_free
        generator = torch.Generator().manual_seed(seed_of(self.seed, 1))
        chosen = torch.randperm(len(latents), generator=generator)[:count]
        if len(chosen) < count:
            raise ValueError(f"k-means needs more than {count} latents to start from, got {len(latents)}.")
        centres = latents[chosen.to(latents.device)].clone()
        for _ in range(iterations):
            nearest = torch.cdist(latents, centres).argmin(1)
            sizes = torch.bincount(nearest, minlength=count)
            sums = torch.zeros_like(centres).index_add_(0, nearest, latents)
            used = sizes > 0
            centres[used] = sums[used] / sizes[used, None]
        self.entries[self.first_free :] = centres
        self.uses.fill_(1.0)
        self.sums.copy_(self.entries)
        self.started = True

    @torch.no_grad()
    def update(self, latents: torch.Tensor, codes: torch.Tensor, errors: torch.Tensor, step: int) -> int:
        """
        One step of the running means, and new places for dead codes where the picture is worst.

        Args:
            latents (`torch.FloatTensor` of shape `(n, embed_dim)`): Before quantisation, of all processes.
            codes (`torch.LongTensor` of shape `(n,)`): What they chose.
            errors (`torch.FloatTensor` of shape `(n,)`): Reconstruction error of each one's patch.
            step: the run's step, part of the restart's seed.

        Returns:
            how many codes were restarted.
        """
        counts = torch.bincount(codes, minlength=len(self.entries)).float()
        self.uses.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, latents.float()), 1 - self.decay)
        dead = self.uses < self.restart_below * self.uses.mean()
        dead[: self.first_free] = False
        self.entries.copy_(torch.where(dead[:, None], self.entries, self.sums / self.uses.clamp_min(1e-6)[:, None]))
        places = dead.nonzero().flatten()
        if len(places):
            generator = torch.Generator().manual_seed(seed_of(self.seed, 2, step))
            weights = errors.float().cpu() * (codes >= self.first_free).cpu() + 1e-12
            places = places[: int((weights > 1e-12).sum())]
            chosen = torch.multinomial(weights, len(places), generator=generator).to(latents.device)
            self.entries[places] = latents[chosen].to(self.entries.dtype)
            self.uses[places] = self.uses.mean()
            self.sums[places] = self.entries[places] * self.uses[places, None]
        return len(places)

    def state_dict(self) -> dict[str, torch.Tensor | bool]:
        """For checkpoints; the entries themselves are the codec's."""
        return {"uses": self.uses, "sums": self.sums, "started": self.started}

    def load_state_dict(self, state: dict[str, torch.Tensor | bool]) -> None:
        """Puts a checkpoint's state back."""
        self.uses.copy_(state["uses"])
        self.sums.copy_(state["sums"])
        self.started = bool(state["started"])
