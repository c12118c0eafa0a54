"""tools/benchmark.py and what measures for it: options, rows, ratios, failures, files."""

import csv
import functools
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from vssm._cli import run
from vssm._errors import UserError
from vssm.profiling import Setup, as_markdown, models, read_results
from vssm.profiling import benchmark as measure
from vssm.profiling.models import _ratio, make_call

pytest.importorskip("fvcore")
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import benchmark as tool  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = ["--img-size", "32", "--rounds", "1"]


def test_tool(tmp_path, capsys):
    words = ["vmamba_pic?", "--compare", "test_resnet", "--img-size", "32", "--batch-size", "1", "2", "--rounds", "2"]
    words += ["--backend", "torch", "reference"]
    for form in ("csv", "json", "markdown"):
        words += [f"--{form}", str(tmp_path / form)]
    assert run(tool.main, words) == 0

    rows = json.loads((tmp_path / "json").read_text())["rows"]
    of_a_batch = [("vmamba_pico", "torch"), ("vmamba_pico", "reference"), ("test_resnet", None)]
    expected = [(name, batch, backend) for batch in (1, 2) for name, backend in of_a_batch]
    assert [(r["model"], r["batch"], r["scan backend"]) for r in rows] == expected
    for row in rows:
        assert row["input"] == [3, 32, 32] and row["mode"] == "infer" and row["dtype"] == "float32"
        assert row["images_per_s"] == pytest.approx(row["batch"] * 1e3 / row["milliseconds"]["median"], rel=0.01)
        assert {"torch", "timm", "cpu", "threads", "layout", "compiled", "autocast"} <= set(row)
        if row["model"] == "test_resnet":
            assert "ratio" not in row
        else:
            assert row["peer"] == "test_resnet" and row["ratio q1"] <= row["ratio"] <= row["ratio q3"]
            assert ("operators" in row) == (row["ratio"] < 0.5)
    assert rows[0]["params"] == sum(p.numel() for p in timm.create_model("vmamba_pico").parameters())

    table = (tmp_path / "markdown").read_text()
    assert table == capsys.readouterr().out == as_markdown(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    header, cells = lines[0], lines[1:]
    assert "mode: infer; " in table and "scan backend" in header and "mode" not in header
    with open(tmp_path / "csv") as file:
        flat = list(csv.DictReader(file))
    for row, line, values in zip(rows, cells, flat, strict=True):
        shown = dict(zip(header, line, strict=True))
        assert shown["model"] == values["model"] == row["model"]
        assert (
            shown["images/s"] == f"{row['images_per_s']:.1f}" and float(values["images_per_s"]) == row["images_per_s"]
        )
        assert shown["scan backend"] == (row["scan backend"] or "none") and values["input"] == "3x32x32"
        assert float(values["ms median"]) == row["milliseconds"]["median"]
    assert read_results(tmp_path / "json") == rows


@pytest.mark.parametrize(
    ("name", "setup", "modes", "said"),
    [
        (
            "vmamba_pico",
            Setup(dtype="bfloat16", amp=True, channels_last=True, threads=1),
            ("infer", "train"),
            {"dtype": "bfloat16", "autocast": True, "layout": "channels last", "threads": "1"},
        ),
        ("vssd_pico", Setup(dtype="bfloat16"), ("infer",), {"dtype": "bfloat16", "autocast": False}),
        ("test_convnext", Setup(dtype="float16", amp=True), ("train",), {"dtype": "float16", "autocast": True}),
        ("vssm_efficientvim_pico", Setup(reparam=True), ("infer",), {"reparameterized": True, "scan backend": None}),
    ],
    ids=["bf16-amp-channels-last", "bf16", "fp16-amp", "reparam"],
)
def test_options(name, setup, modes, said):
    stages = []
    rows = list(
        measure(
            [name], setup, modes=modes, img_sizes=[64], batch_sizes=[2], rounds=1, progress=lambda *s: stages.append(s)
        )
    )
    assert [row["mode"] for row in rows] == list(modes)
    for row in rows:
        assert "failed" not in row, row["failed"]
        assert row.items() >= said.items()
    assert stages[-1][1] == stages[-1][2] and stages[-1][0] == f"{modes[-1]}, 64 px, batch 2"


class Net(nn.Module):
    """Keeps what it saw."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        self.seen = x
        self.modes = self.training, torch.is_grad_enabled()
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("amp", [False, True])
def test_what_is_called(mode, dtype, amp):
    if amp and dtype == "float32":
        pytest.skip("refused")
    model, setup = Net(), Setup(dtype=dtype, amp=amp, channels_last=True)
    before = [p.clone() for p in model.parameters()]
    call = make_call(model, setup, mode)
    output = call(setup.place(torch.randn(2, 3, 8, 8)))
    kept = torch.float32 if amp else getattr(torch, dtype)
    assert model.seen.dtype == model.conv.weight.dtype == kept
    assert model.seen.is_contiguous(memory_format=torch.channels_last)
    assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.modes == ((True, True) if mode == "train" else (False, False))
    assert all(p.grad is None for p in model.parameters())
    moved = [
        not torch.equal(p.float(), old.to(kept).float()) for p, old in zip(model.parameters(), before, strict=True)
    ]
    assert any(moved) == (mode == "train")
    assert mode == "train" or output.dtype == getattr(torch, dtype)


def test_both_heads_of_a_distilled_model_are_trained():
    class Two(Net):
        def forward(self, x):
            return super().forward(x), self.other(x.mean((2, 3)))

    model = Two()
    model.other = nn.Linear(3, 3)
    before = model.other.weight.clone(), model.fc.weight.clone()
    make_call(model, Setup(), "train")(torch.randn(2, 3, 8, 8))
    assert not torch.equal(before[0], model.other.weight) and not torch.equal(before[1], model.fc.weight)


def test_switches_are_set_and_set_back():
    def now():
        backends = torch.backends.cuda.matmul, torch.backends.cudnn
        return (torch.get_num_threads(), torch.backends.cudnn.benchmark, *(b.allow_tf32 for b in backends))

    before = now()
    for tf32 in (False, True):
        with Setup(threads=3, tf32=tf32).applied():
            assert now() == (3, True, tf32, tf32)
        assert now() == before


@pytest.mark.slow
def test_compiled(monkeypatch):
    class Counted(Net):
        eager = 0

        def forward(self, x):
            if not torch.compiler.is_compiling():
                Counted.eager += 1
            return super().forward(x)

    monkeypatch.setattr(models, "create", lambda name, input_size: Counted())
    monkeypatch.setattr(models, "paper_flops", lambda model, input_size: 1)
    rows = list(measure(["test_resnet"], Setup(compile=True), img_sizes=[32], rounds=2))
    assert all("failed" not in row and row["compiled"] for row in rows)
    assert Counted.eager == 1  # when it was looked at for scans


def test_ratio_is_of_the_rounds():
    # Every round twice as fast, though the machine's speed changes fourfold between them.
    assert _ratio([1.0, 4.0, 2.0], [2.0, 8.0, 4.0]) == {"ratio": 2.0, "ratio q1": 2.0, "ratio q3": 2.0}
    assert _ratio([2.0], [1.0])["ratio q3"] == 0.5
    spread = _ratio([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert spread["ratio q1"] < spread["ratio"] == 2 < spread["ratio q3"]


def test_a_model_that_fails_costs_only_its_own_figures(monkeypatch, tmp_path, capsys):
    def fail(model, images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words.")
        return type(model).forward(model, images)

    def create(name, input_size, create=models.create):
        model = create(name, input_size)
        if name == "test_resnet":
            model.forward = functools.partial(fail, model)
        return model

    monkeypatch.setattr("vssm.profiling.models.create", create)
    names = ["test_resnet", "vit_tiny_patch16_224", "vmamba_pico", "--compare", "test_resnet"]
    words = [*names, "--img-size", "15", "--batch-size", "1", "2", "--rounds", "1"]
    assert run(tool.main, [*words, "--json", str(tmp_path / "r.json"), "--csv", str(tmp_path / "r.csv")]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    failed = {(r["model"], r["batch"]): r["failed"] for r in rows if "failed" in r}
    assert failed[("test_resnet", 2)] == "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
    assert set(failed) == {("test_resnet", 2), ("vit_tiny_patch16_224", 1), ("vit_tiny_patch16_224", 2)}
    ratios = {(r["model"], r["batch"]) for r in rows if "ratio" in r}
    assert ratios == {("vmamba_pico", 1)}  # at batch 2 there is nothing to compare with
    table = capsys.readouterr().out
    assert "CUDA out of memory. Tried to allocate 2 GiB." in table
    assert "CUDA out of memory. Tried to allocate 2 GiB." in (tmp_path / "r.csv").read_text()
    assert run(tool.main, ["vit_tiny_patch16_224", *SMALL[2:], "--img-size", "15"]) == 1  # nothing was measured


def test_memory_is_measured_apart(tmp_path):
    words = ["test_convnext", "--img-size", "160", "--batch-size", "4", "--rounds", "1", "--memory"]
    assert run(tool.main, [*words, "--json", str(tmp_path / "r.json")]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    # The first map: 4 images of 40 x 40 positions, 24 channels, float32.
    assert row["mebibytes"] > 4 * 40 * 40 * 24 * 4 / 2**20


def test_memory_that_cannot_be_measured(monkeypatch):
    def killed(*words):
        raise UserError("measuring memory with a process failed: Killed")

    monkeypatch.setattr("vssm.profiling.models.output_apart", killed)
    rows = list(measure(["test_resnet"], img_sizes=[32], rounds=1, memory=True))
    assert rows[0]["mebibytes"] is None and rows[0]["memory failed"] == "Killed" and rows[0]["images_per_s"] > 0
    assert "failed: Killed" in as_markdown(rows)


def test_interrupted(monkeypatch, tmp_path, capsys):
    row = dict(model="a", input=[3, 8, 8], batch=1, params=1, gflops=1.0, images_per_s=1.0)
    row["milliseconds"] = dict(rounds=1, median=1.0, q1=1.0, q3=1.0, best=1.0)

    def one(*args, **options):
        yield row
        raise KeyboardInterrupt

    monkeypatch.setattr("vssm.profiling.benchmark", one)
    assert run(tool.main, ["a", "--json", str(tmp_path / "r.json")]) == 130
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == [row]
    assert "Interrupted" in capsys.readouterr().err


def test_earlier_results_are_read():
    rows = read_results(ROOT / "benchmarks/results/2026-11-22_models_cpu.json")
    assert len(rows) == 72 and all(row["threads"] == "2" and row["mode"] == "infer" for row in rows)
    assert "| vmamba_tiny_s1l8 " in as_markdown(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is not a JSON file"),
        ("[]", "holds no results"),
        ('{"rows": [{"scan": "cpp"}]}', "holds no results"),
        ('{"rows": [{"model": "a", "input": [3, 8, 8], "batch": 1}]}', "a row of a without gflops"),
    ],
)
def test_files_that_are_no_results(tmp_path, capsys, text, message):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    assert run(tool.main, ["--from", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("vmamba_picko", "timm knows no model 'vmamba_picko' (did you mean 'vmamba_pico'"),
        ("nothing_*", "No model's name matches 'nothing_*'."),
        ("vmamba_pico --compare test_resnett", "timm knows no model 'test_resnett' (did you mean 'test_resnet'"),
        ("vmamba_pico --device cudaa", "The device 'cudaa' cannot be used"),
        ("vmamba_pico --device meta", "The device 'meta' computes nothing"),
        ("vmamba_pico --dtype int8", "There is no dtype 'int8' to measure in; choose one of float32,"),
        ("vmamba_pico --amp", "needs a dtype to lower to"),
        ("vmamba_pico --tf32 on", "TF32 exists on CUDA GPUs only"),
        ("vmamba_pico --threads 0", "threads must be at least 1, got 0"),
        ("vmamba_pico --mode fly", "There is no mode 'fly'; choose of infer, train."),
        ("vmamba_pico --batch-size 1 0", "The batch size must be at least 1, got 0."),
        ("vmamba_pico --img-size 0", "The image size must be at least 1, got 0."),
        ("vmamba_pico --rounds 0", "The number of rounds must be at least 1, got 0."),
        ("vmamba_pico --backend cuda", "There is no scan backend 'cuda'; choose of auto, triton"),
        ("vmamba_pico --reparam --mode infer train", "are for inference; they are not trained"),
        (f"vmamba_pico --json {__file__}/r.json", "r.json' cannot be written"),
        ("vmamba_pico --plot p.xyz", "--plot p.xyz must end in one of"),
    ],
)
def test_refusals(words, message, capsys):
    assert run(tool.main, words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("words", ["", "vmamba_pico --from r.json", "vmamba_pico --compare"])
def test_commands_that_do_not_parse(words, capsys):
    with pytest.raises(SystemExit):
        tool.main(words.split())
    assert "error: " in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    assert run(tool.main, ["vmamba_pico", "--device", "cuda"]) == 2
    assert "The device 'cuda' cannot be used: " in capsys.readouterr().err


def test_a_backend_that_is_not_there(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run(tool.main, ["vmamba_pico", "--backend", "triton"]) == 2
    assert "The scan backend 'triton' cannot run on cpu: " in capsys.readouterr().err
