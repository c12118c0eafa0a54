"""Costs of models: operations counted as the papers count them or in plain units, and time measured side by side."""

from .cost import Cost, ModuleCost
from .flops import count, paper_flops
from .models import Setup, benchmark
from .results import as_csv, as_json, as_markdown, read_results
from .throughput import environment, interleaved, operators, summary

__all__ = [
    "Cost",
    "ModuleCost",
    "Setup",
    "as_csv",
    "as_json",
    "as_markdown",
    "benchmark",
    "count",
    "environment",
    "interleaved",
    "operators",
    "paper_flops",
    "read_results",
    "summary",
]
