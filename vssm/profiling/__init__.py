"""What a model costs: operations counted as the papers count them, and time measured side by side."""

from .flops import paper_flops
from .throughput import environment, interleaved, operators, summary

__all__ = ["environment", "interleaved", "operators", "paper_flops", "summary"]
