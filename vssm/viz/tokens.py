"""Scans of sequences of tokens, seen as scans of the map that their patches come from."""

import torch
from torch import Tensor, nn

from ..models import TokenEmbedding
from ..scans import LinearScan

__all__ = ["PatchScans"]


class PatchScans:
    """The scans of a mixer over patches with a class token among them, as functions on the map of the patches.

    What a patch takes from the class token is left out, and so is what the class token takes.

    Args:
        mixer: One with the method `linear_scans`, over sequences.
        x: Its input (1, H * W + 1, C).
        tokens: Where the class token stands.
        size: (H, W).
    """

    def __init__(self, mixer: nn.Module, x: Tensor, tokens: TokenEmbedding, size: tuple[int, int]):
        self.mixer, self.x, self.tokens, self.size = mixer, x, tokens, size

    def patches(self, x: Tensor) -> Tensor:
        """Take the patches (Q, H, W, ...) of sequences (Q, H * W + 1, ...)."""
        return self.tokens.split(x)[0].unflatten(1, self.size)

    def linear_scans(self, x: Tensor) -> list[LinearScan]:
        """Say how the mixer is linear; see `vssm.scans.linear`.

        Args:
            x: The map of the patches (1, H, W, C), which is known already.
        """
        index = self.tokens.index(self.size[0] * self.size[1])

        def on_map(scan: LinearScan) -> LinearScan:
            def apply(u: Tensor) -> Tensor:
                u = u.flatten(1, 2)
                u = torch.cat([u[:, :index], torch.zeros_like(u[:, :1]), u[:, index:]], dim=1)
                return self.patches(scan.apply(u.unsqueeze(1)).squeeze(1))

            return LinearScan(self.patches(scan.source.squeeze(1)), apply, scan.routes, scan.channels)

        return [on_map(scan) for scan in self.mixer.linear_scans(self.x)]
