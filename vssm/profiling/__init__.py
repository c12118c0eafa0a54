"""What a model costs: operations counted as the papers count them, and time measured side by side."""

from .flops import paper_flops
from .models import Setup, benchmark
from .results import as_csv, as_json, as_markdown, read_results
from .throughput import environment, interleaved, operators, summary

__all__ = [
    "Setup",
    "as_csv",
    "as_json",
    "as_markdown",
    "benchmark",
    "environment",
    "interleaved",
    "operators",
    "paper_flops",
    "read_results",
    "summary",
]
