"""The newest measurements of the models, from `benchmarks/results`."""

import json
from pathlib import Path

from .._errors import UserError
from ..profiling.results import read_results, shared

__all__ = ["NONE", "Measured"]

# Stands in a table where there is no figure.
NONE = "–"


class Measured:
    """The newest measurements in `benchmarks/results`, whose files' names begin with their dates."""

    def __init__(self, repo: Path):
        self.folder = repo / "benchmarks" / "results"
        self.files = {"cpu": self._newest("*_models_cpu.json"), "cuda": self._newest("*_models_cuda*.json")}
        self.rows = {
            device: [row for row in read_results(file) if row["mode"] == "infer" and "failed" not in row]
            for device, file in self.files.items()
            if file
        }
        self.files["parity"] = self._newest("*_parity_cpu.json")
        if not self.files["parity"]:
            raise UserError(f"{self.folder} has no *_parity_cpu.json; `make parity` measures it.")
        self.parity = json.loads(self.files["parity"].read_text())

    def _newest(self, pattern: str) -> Path | None:
        return max(self.folder.glob(pattern), default=None)

    def deviation(self, name: str) -> tuple[str, str] | None:
        """The largest of the outputs, and of the gradients, as in "2e-7" and "3e-6"; None where none was measured."""
        kinds = self.parity["deviations"].get(name)
        return (_shortest(kinds.get("outputs", {})), _shortest(kinds.get("gradients", {}))) if kinds else None

    def titles(self) -> list[str]:
        """Of the columns of speed."""
        return [f"{device.upper()} x{batch}" for device, batch in self._runs()]

    def speeds_of(self, name: str) -> dict[str, float]:
        """Images per second of a model by the titles of the columns; those that were not measured are missing."""
        return {
            f"{device.upper()} x{row['batch']}": float(f"{row['images_per_s']:.3g}")
            for device, rows in self.rows.items()
            for row in rows
            if row["model"] == name
        }

    def cells(self, name: str) -> list[str]:
        """Images per second of a model, one for each title."""
        speeds = self.speeds_of(name)
        return [f"{speeds[title]:.3g}" if title in speeds else NONE for title in self.titles()]

    def _runs(self) -> list[tuple[str, int]]:
        return sorted({(device, row["batch"]) for device, rows in self.rows.items() for row in rows})

    def speeds(self) -> str:
        """List what was measured of the speed, and on which machine."""
        lines = []
        for device in ("cpu", "cuda"):
            title = device.upper()
            if device in self.rows:
                batches = [str(batch) for kind, batch in self._runs() if kind == device]
                names = " and ".join(f"**{title} x{batch}**" for batch in batches)
                lines.append(
                    f"- {names}: images per second of inference in batches of {' and '.join(batches)}, measured here."
                )
                lines.append(f"  {self.about(device)}")
            else:
                lines.append(f"- **{title}**: speed not measured yet.")
        return "\n".join(lines) + "\n"

    def about(self, kind: str) -> str:
        """Say where the figures of "parity", "cpu" or "cuda" stand, and what ran."""
        settings = self.parity["environment"] if kind == "parity" else shared(self.rows[kind])
        name = self.files[kind].name
        values = "; ".join(f"{key}: {value}" for key, value in settings.items())
        return f"[All figures](benchmarks/results/{name}): {values}."

    def machine(self, kind: str) -> str:
        """Say in a few words on what the speeds of "cpu" or "cuda" were measured."""
        settings = shared(self.rows[kind])
        words = [settings.get("gpu") or settings.get("cpu"), settings.get("dtype")]
        if "threads" in settings:
            words.insert(1, f"{settings['threads']} threads")
        return ", ".join(word for word in words if word)


def _shortest(by_dtype: dict[str, float]) -> str:
    """The deviation in float32, or in float64 where the tests run only in that."""
    if not by_dtype:
        return NONE
    dtype = "float32" if "float32" in by_dtype else "float64"
    return f"{by_dtype[dtype]:.0e}".replace("e-0", "e-") + ("" if dtype == "float32" else " (f64)")
