"""Runs the op benchmarks: `python kernels/benchmarks/run.py [--list] [--only NAME] [--threads 2] [--device cpu]`.

Every candidate is warmed up, then all of them are timed in turn, round after round, so that a slow spell of the machine
falls on all alike. Reported are the median and the quartiles of the rounds. A ratio is that of the medians.
"""

import argparse
import importlib.util
import json
import platform
import sys
from pathlib import Path

import torch

if importlib.util.find_spec("vssm_kernels") is None:  # a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import few_positions  # noqa: E402, F401  (registers its benchmarks)
import neighborhood_attention  # noqa: E402, F401
import selective_scan  # noqa: E402, F401
import selective_scan_2d  # noqa: E402, F401
import volumes  # noqa: E402, F401
from registry import BENCHMARKS, Benchmark  # noqa: E402

from vssm_kernels import cpu_library  # noqa: E402
from vssm_kernels.timing import cpu_name, interleaved, summary  # noqa: E402

# A candidate that takes more than 0.1 s in the warm-up has five rounds only.
SLOW = (0.1, 5)


def run_benchmark(benchmark: Benchmark, device: torch.device, rounds: int) -> dict:
    built = benchmark.build(device)
    skipped = {name: reason for name, reason in built.items() if isinstance(reason, str)}
    candidates = {name: run for name, run in built.items() if name not in skipped}
    times = interleaved(candidates, device, rounds, slow=SLOW)
    results = {name: summary(values) for name, values in times.items()}
    ratios = []
    for ratio in benchmark.ratios:
        if ratio.over in results and ratio.under in results:
            value = results[ratio.over]["median"] / results[ratio.under]["median"]
            ratios.append(
                {
                    "ratio": f"{ratio.over} / {ratio.under}",
                    "value": value,
                    "target": ratio.target(),
                    "holds": ratio.holds(value),
                }
            )
    for name, limit in benchmark.limits.items():
        if name in results:
            value = results[name]["median"]
            target = f"<= {limit:g}"
            ratios.append({"ratio": f"{name}, ms", "value": value, "target": target, "holds": value <= limit})
    return {
        "name": benchmark.name,
        "about": benchmark.about,
        "dtype": benchmark.dtype,
        "milliseconds": results,
        "skipped": skipped,
        "ratios": ratios,
    }


def environment(device: torch.device) -> dict[str, str]:
    info = {"torch": torch.__version__, "python": platform.python_version(), "device": str(device)}
    if device.type == "cpu":
        info |= {"cpu": cpu_name(), "threads": str(torch.get_num_threads())}
        info["cpp kernels"] = cpu_library.unavailable_reason() or cpu_library.variant()
    else:
        module = torch.get_device_module(device)
        info["gpu"] = module.get_device_name(device)
    return info


def as_markdown(info: dict[str, str], results: list[dict]) -> str:
    lines = ["; ".join(f"{key}: {value}" for key, value in info.items())]
    for result in results:
        lines += ["", f"### {result['name']} ({result['about']}, {result['dtype']})", ""]
        lines += ["| candidate | median ms | quartiles ms | best ms | rounds |", "|---|---|---|---|---|"]
        for name, t in result["milliseconds"].items():
            quartiles = f"{t['q1']:.3g} - {t['q3']:.3g}"
            lines.append(f"| {name} | {t['median']:.3g} | {quartiles} | {t['best']:.3g} | {t['rounds']} |")
        lines += [f"| {name} | not run: {reason} | | | |" for name, reason in result["skipped"].items()]
        lines += ["", "| ratio of medians, or median | value | target | |", "|---|---|---|---|"]
        for ratio in result["ratios"]:
            verdict = "" if not ratio["target"] else "met" if ratio["holds"] else "MISSED"
            lines.append(f"| {ratio['ratio']} | {ratio['value']:.3g} | {ratio['target']} | {verdict} |")
    return "\n".join(lines) + "\n"


def draw(info: dict[str, str], results: list[dict], file: Path) -> None:
    """Medians as bars, quartiles as whiskers, a panel a benchmark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in results if result["milliseconds"]]
    if not results:
        return
    heights = [0.8 + 0.28 * len(result["milliseconds"]) for result in results]
    figure, panels = pyplot.subplots(
        len(results), 1, figsize=(8, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for panel, result in zip(panels[:, 0], results, strict=True):
        times = result["milliseconds"]
        medians = [t["median"] for t in times.values()]
        whiskers = [[t["median"] - t["q1"] for t in times.values()], [t["q3"] - t["median"] for t in times.values()]]
        bars = panel.barh(list(times), medians, xerr=whiskers, color="C0", ecolor="0.4")
        panel.bar_label(bars, [f"{value:.3g}" for value in medians], padding=4, fontsize=7)
        panel.set_xscale("log")
        panel.invert_yaxis()
        panel.tick_params(labelsize=7)
        panel.set_title(f"{result['name']} ({result['about']}, {result['dtype']})", fontsize=8, loc="left")
    panels[-1, 0].set_xlabel("ms, " + ", ".join(info.values()), fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the benchmarks and stop")
    parser.add_argument("--only", metavar="NAME", help="the benchmark NAME, or those whose name contains it")
    parser.add_argument("--threads", type=int, help="CPU threads (PyTorch's default when not given)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them here (needs matplotlib)")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")

    chosen = [b for b in BENCHMARKS.values() if not args.only or args.only in b.name]
    if args.only in BENCHMARKS:
        chosen = [BENCHMARKS[args.only]]
    if not chosen:
        parser.error(f"no benchmark is called {args.only}; there are {', '.join(BENCHMARKS)}")
    if args.list:
        for benchmark in chosen:
            print(f"{benchmark.name}: {benchmark.about}, {benchmark.dtype}")
        return
    if args.threads:
        torch.set_num_threads(args.threads)

    info = environment(args.device)
    results = []
    for benchmark in chosen:
        print(f"running {benchmark.name}", file=sys.stderr)  # minutes on a slow machine, and no output until the end
        results.append(run_benchmark(benchmark, args.device, args.rounds))
    table = as_markdown(info, results)
    print(table, end="")
    if args.json:
        args.json.write_text(json.dumps({"environment": info, "benchmarks": results}, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table)
    if args.plot:
        draw(info, results, args.plot)


if __name__ == "__main__":
    main()
