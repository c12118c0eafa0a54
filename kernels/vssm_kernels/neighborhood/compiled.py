"""Neighbourhood attention and its gradients by the compiled CPU library."""

from ..cpu_maps import neighborhood_attention as attention_fwd
from ..cpu_maps import neighborhood_attention_grad as attention_bwd

__all__ = ["attention_bwd", "attention_fwd"]
