"""States that are maps: a convolutional state space over the time of videos (ConvSSM, arXiv 2310.19694).

Letters: B batch, T frames, H x W map, C channels, P complex states of a pixel, k side of the convolutions.
"""

import math
from typing import Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ._state_space import at_least_float32, outside_autocast, state_matrix
from .diagonal import hippo_legs_spectrum

__all__ = ["ConvSSM"]


class ConvSSM(nn.Module):
    """ConvS5: x_t = A x_t-1 + B * u_t, y_t = 2 Re(C * x_t) + D * u_t over the frames of a video; * is a convolution.

    A is diagonal, one complex number a state, so that many frames are computed at once: its powers are known. B, C and
    D convolve k x k with zeros around the map. A step size for each state makes A and B discrete (zero-order hold).
    Nothing depends on the input, and nothing on later frames. Norm, activation and residual are the caller's.

    Args:
        dim: Channels C.
        d_state: Complex states P, which stand for 2 P real ones.
        kernel: k, odd.
        blocks: The states start as that many HiPPO-LegS of equal size.
        chunk: Frames that are computed at once.
        device: Of the parameters.
        dtype: Of the parameters.

    The parameters: A_logs (P,), log of minus the real part; A_imag (P,); log_dt (P,); B (P, C, k, k, 2) and
    C (C, P, k, k, 2), the real and the imaginary part; D (C, C, k, k).

    Raises:
        ValueError: An even kernel, or blocks that do not divide the states.

    (B, T, H, W, C) to the same, of any size and in any floating dtype; computed in float32 or better.
    """

    def __init__(
        self, dim: int, d_state: int = 64, kernel: int = 3, blocks: int = 1, chunk: int = 16, device=None, dtype=None
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if kernel % 2 == 0:
            raise ValueError(f"ConvSSM: the kernel must be odd, got {kernel}")
        if d_state % blocks:
            raise ValueError(f"ConvSSM: {blocks} blocks do not divide {d_state} states")
        self.d_state = d_state
        self.blocks = blocks
        self.chunk = chunk
        self.A_logs = nn.Parameter(torch.empty(d_state, **dd))
        self.A_imag = nn.Parameter(torch.empty(d_state, **dd))
        self.log_dt = nn.Parameter(torch.empty(d_state, **dd))
        self.B = nn.Parameter(torch.empty(d_state, dim, kernel, kernel, 2, **dd))
        self.C = nn.Parameter(torch.empty(dim, d_state, kernel, kernel, 2, **dd))
        self.D = nn.Parameter(torch.empty(dim, dim, kernel, kernel, **dd))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Start as the paper: HiPPO-LegS, He-normal matrices turned into its eigenvectors, log-uniform steps."""
        values, _, vectors = hippo_legs_spectrum(2 * self.d_state // self.blocks)
        self.A_logs.copy_((-values.real).log().repeat(self.blocks))
        self.A_imag.copy_(values.imag.repeat(self.blocks))
        self.log_dt.uniform_(math.log(1e-3), math.log(0.1))
        turn = torch.block_diag(*[vectors] * self.blocks).to(self.B.device)  # (2 P, P)
        dim, kernel = self.D.shape[0], self.D.shape[-1]

        def he_normal(outputs: int, inputs: int) -> Tensor:
            matrix = torch.empty(outputs, inputs, kernel, kernel, dtype=torch.float64, device=self.B.device)
            return nn.init.kaiming_normal_(matrix).to(turn.dtype)

        self.B.copy_(torch.view_as_real(torch.einsum("np,nckl->pckl", turn.conj(), he_normal(2 * self.d_state, dim))))
        self.C.copy_(torch.view_as_real(torch.einsum("cnkl,np->cpkl", he_normal(dim, 2 * self.d_state), turn)))
        nn.init.kaiming_normal_(self.D)

    def discrete(self) -> Tuple[Tensor, Tensor]:
        """Give exp(dt A) and (exp(dt A) - 1) / A, (P,) each, complex, in float32 or better."""
        A = torch.complex(state_matrix(self.A_logs), at_least_float32(self.A_imag))
        decay = torch.exp(torch.exp(at_least_float32(self.log_dt)) * A)
        return decay, (decay - 1) / A

    def given(self, u: Tensor) -> Tensor:
        """Compute what frames add to the states: (F, C, H, W) to (F, P, H, W), complex."""
        weight = torch.cat(at_least_float32(self.B).unbind(-1))
        real, imag = F.conv2d(u, weight, padding="same").chunk(2, dim=1)
        return torch.complex(real, imag) * self.discrete()[1].view(-1, 1, 1)

    def read(self, x: Tensor, u: Tensor) -> Tensor:
        """Compute the result of states (F, P, H, W) and frames (F, C, H, W): (F, C, H, W)."""
        real, imag = at_least_float32(self.C).unbind(-1)
        y = F.conv2d(torch.cat([x.real, x.imag], 1), torch.cat([2 * real, -2 * imag], 1), padding="same")
        return y + F.conv2d(u, at_least_float32(self.D), padding="same")

    def scan(self, x: Tensor) -> Tensor:
        """Give the states at all frames of what the frames add to them, (B, T, P, H, W) to the same, complex."""
        decay, _ = self.discrete()
        t = torch.arange(min(self.chunk, x.shape[1]), device=x.device)
        apart = t.unsqueeze(1) - t
        # Powers of the decay from frame s to frame t; nothing comes from later frames.
        powers = torch.where(apart >= 0, decay.view(-1, 1, 1) ** apart.clamp(min=0), 0)
        state, results = torch.zeros_like(x[:, 0]), []
        for part in x.split(len(t), dim=1):
            count = part.shape[1]
            states = torch.einsum("pts,bsphw->btphw", powers[:, :count, :count], part)
            carried = decay.unsqueeze(0) ** (t[:count, None] + 1)
            states = states + carried.view(count, -1, 1, 1) * state.unsqueeze(1)
            state = states[:, -1]
            results.append(states)
        return torch.cat(results, dim=1)

    def forward(self, u: Tensor) -> Tensor:
        """Map (B, T, H, W, C) to (B, T, H, W, C)."""
        with outside_autocast(u):
            frames = at_least_float32(u).to(at_least_float32(self.D).dtype).movedim(-1, 2)
            flat = frames.flatten(0, 1)
            states = self.scan(self.given(flat).unflatten(0, frames.shape[:2]))
            y = self.read(states.flatten(0, 1), flat)
        return y.unflatten(0, frames.shape[:2]).movedim(2, -1).to(u.dtype)

    def step(self, u: Tensor, state: Tensor | None = None) -> Tuple[Tensor, Tensor]:
        """Map one frame, where the frames come one by one.

        Args:
            u: (B, H, W, C).
            state: Of the frame before, (B, P, H, W), complex; None: there is none.

        Returns:
            What `forward` gives at this frame, (B, H, W, C), and its state.
        """
        with outside_autocast(u):
            frame = at_least_float32(u).movedim(-1, 1)
            x = self.given(frame)
            if state is not None:
                x = x + self.discrete()[0].view(-1, 1, 1) * state
            return self.read(x, frame).movedim(1, -1).to(u.dtype), x
