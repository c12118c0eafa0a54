"""What a model costs, counted as the papers count it."""

from .flops import paper_flops

__all__ = ["paper_flops"]
