#!/usr/bin/env python
"""Draw the pictures of the documentation, at the size at which they are shown: `make pictures`.

python docs/pictures.py                    all of them; those whose runs are not there are named and left as they are
python docs/pictures.py scan_routes.png    one

Runs are looked for in --runs, as the commands on the pages make them: demo (`make demo`), mni152, det, seg and pose.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vssm._cli import run
from vssm._errors import UserError

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
CONFIGS = ROOT / "configs"
DIGITS = CONFIGS / "classification/vmamba-pico_digits.py"
VOLUME = CONFIGS / "medical/unet-vmamba-pico_mni152.py"
DETECTOR = CONFIGS / "detection/mask-rcnn_vmamba-pico_digits-coco.py"
POSE = CONFIGS / "pose/heatmap_hrvmamba-pico_digits.py"
SEGMENTOR = CONFIGS / "segmentation/upernet_vmamba-pico_digits-ade.py"
# The folder of a run in --runs, and how it is made.
RUNS = {
    "demo": "make demo",
    "mni152": f"python tools/train.py {VOLUME.relative_to(ROOT)} --work-dir work_dirs/mni152",
    "det": f"python tools/train.py {DETECTOR.relative_to(ROOT)} --work-dir work_dirs/det",
    "seg": f"python tools/train.py {SEGMENTOR.relative_to(ROOT)} --work-dir work_dirs/seg",
    "pose": f"python tools/train.py {POSE.relative_to(ROOT)} --work-dir work_dirs/pose",
}

Draw = Callable[..., object]
PICTURES: dict[str, tuple[Draw, tuple[str, ...]]] = {}


def picture(name: str, *runs: str) -> Callable[[Draw], Draw]:
    """Register what draws a picture, from the path to write and the folders of these runs."""

    def register(draw: Draw) -> Draw:
        PICTURES[name] = (draw, runs)
        return draw

    return register


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("epoch_*.pth"), key=lambda path: int(path.stem.partition("_")[2]))


def subject(config: Path, folder: Path | None = None):
    """Return the network of a run, or with random weights without the run's folder."""
    import vssm.tasks  # noqa: F401, registers what knows the run
    from vssm.engine import load_config
    from vssm.viz.subject import Subject

    return Subject.from_config(load_config(str(config)), None if folder is None else str(last_checkpoint(folder)))


@picture("accuracy_speed.png")
def accuracy_speed(path: Path) -> None:
    from vssm.profiling import read_results
    from vssm.viz import plot_accuracy

    plot_accuracy(read_results(max((ROOT / "benchmarks/results").glob("*_models_cpu.json"))), path)


@picture("scan_routes.png")
def scan_routes(path: Path) -> None:
    from vssm.viz import plot_routes

    plot_routes(path)


@picture("visualize_routes.gif")
def walking_routes(path: Path) -> None:
    from vssm.viz import animate_routes

    animate_routes(path)


@picture("demo_predictions.png", "demo")
def demo_predictions(path: Path, demo: Path) -> None:
    from vssm.classify import Digits
    from vssm.engine.config import load_config
    from vssm.engine.models import build_trained
    from vssm.viz import plot_predictions

    model, _ = build_trained(load_config(str(DIGITS)), str(last_checkpoint(demo)))
    plot_predictions(model.eval(), Digits("test"), path)


@picture("demo_learning_curve.png", "demo")
def demo_curve(path: Path, demo: Path) -> None:
    from vssm.viz import plot_learning_curves

    plot_learning_curves([demo], path)


@picture("demo_receptive_field.png", "demo")
def demo_field(path: Path, demo: Path) -> None:
    import torch

    from vssm.classify import Digits
    from vssm.engine import create_model
    from vssm.viz import effective_receptive_field, plot_receptive_fields

    dataset = Digits("test")
    images = torch.stack([dataset[index]["inputs"] for index in range(24)])
    images = torch.nn.functional.interpolate(images, size=128, mode="bicubic", align_corners=False)
    trained = subject(DIGITS, demo).network
    torch.manual_seed(0)
    models = {"before training": create_model("vmamba_pico", num_classes=10), "after training": trained}
    plot_receptive_fields({name: effective_receptive_field(m.eval(), images) for name, m in models.items()}, path)


@picture("visualize_activations.png", "demo")
def activations(path: Path, demo: Path) -> None:
    import tempfile

    from torchvision.transforms.functional import to_pil_image

    from vssm.classify import Digits
    from vssm.viz.commands import draw_activations

    scan = next(sample for sample in Digits("test") if sample["labels"] == 6)["inputs"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digit.png"
        to_pil_image((scan - scan.min()) / (scan.max() - scan.min())).convert("RGB").save(file)
        _drawn_to(path, lambda out: draw_activations([subject(DIGITS, demo)], [str(file)], out, stage=0))


def _drawn_to(path: Path, draw: Callable[[Path], object]) -> None:
    """Let a command write its one picture into a folder, and put it at `path`."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        (found,) = Path(folder).iterdir()
        path.write_bytes(found.read_bytes())


def _photographs(count: int) -> list[str]:
    """Return the first held-out photographs with digits, as the pages' commands name them."""
    from vssm.engine import load_config

    data = Path(load_config(str(SEGMENTOR)).val_dataloader.dataset.data_root)
    return [str(file) for file in sorted(data.glob("images/validation/*.jpg"))[:count]]


@picture("visualize_spectrum.png", "demo")
def spectrum(path: Path, demo: Path) -> None:
    from vssm.viz.commands import draw_spectrum, fixed_seed

    with fixed_seed():
        draw_spectrum([subject(DIGITS)], path, [subject(DIGITS, demo)])


@picture("visualize_classes.png", "demo")
def classes(path: Path, demo: Path) -> None:
    import tempfile

    from torchvision.transforms.functional import to_pil_image

    from vssm.classify import Digits, Predictor
    from vssm.engine import load_config
    from vssm.viz.plots import plot_answers

    dataset = Digits("test")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number in range(8):
            scan = dataset[number]["inputs"]
            files.append(f"{folder}/{number}.png")
            to_pil_image((scan - scan.min()) / (scan.max() - scan.min())).convert("RGB").save(files[-1])
        predictor = Predictor.from_run(load_config(str(DIGITS)), last_checkpoint(demo), device="cpu")
        plot_answers(list(predictor(files, topk=3)), path, columns=8)


@picture("visualize_attention_heads.jpg")
def heads(path: Path) -> None:
    import numpy as np
    import torch

    from vssm.engine.images import open_image
    from vssm.medical import mhs_unet_4head
    from vssm.viz import plot_attention, record_scans
    from vssm.viz.attention import choose_scans, look_from
    from vssm.viz.subject import sample_photographs

    torch.manual_seed(0)
    network = mhs_unet_4head().eval()
    image = open_image(sample_photographs()[0]).resize((256, 256))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    recorded = record_scans(network, pixels)
    name = choose_scans(recorded, None)[0]
    plot_attention(image, [look_from(recorded, name, (0.5, 0.4), False)], path, columns=6)


@picture("medical_mni152.png", "mni152")
def volumes(path: Path, mni152: Path) -> None:
    """Two held-out slices, cut to the head."""
    import numpy as np
    import torch
    from mmengine.registry import DATASETS

    from vssm.engine import load_config
    from vssm.engine.models import build_trained
    from vssm.medical.inference import predict_volume
    from vssm.medical.report import plot_overlays
    from vssm.medical.transforms import SliceTransform

    cfg = load_config(str(VOLUME))
    model, _ = build_trained(cfg, str(last_checkpoint(mni152)))
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    image, truth = np.asarray(sample["image"]), np.asarray(sample["label"])
    with torch.inference_mode():
        found = predict_volume(model.eval(), image, SliceTransform(cfg.size, mean=cfg.mean, std=cfg.std))
    rows, columns = (np.flatnonzero((truth > 0).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    head = np.ix_(range(len(truth)), range(rows[0] - 4, rows[-1] + 5), range(columns[0] - 4, columns[-1] + 5))
    plot_overlays(image[head], {"truth": truth[head], "prediction": found[head]}, cfg.data.classes, path, rows=2)


@picture("digits_segmentation.jpg", "seg")
def segments(path: Path, seg: Path) -> None:
    import tempfile

    import numpy as np
    from PIL import Image

    from vssm.engine import load_config
    from vssm.mm import DensePredictor
    from vssm.viz import plot_label_maps

    cfg = load_config(str(SEGMENTOR))
    data = Path(cfg.val_dataloader.dataset.data_root)
    files = [Path(file) for file in _photographs(4)]
    with tempfile.TemporaryDirectory() as folder:
        predictor = DensePredictor(cfg, last_checkpoint(seg), device="cpu")
        answers = list(predictor([str(file) for file in files], label_maps=folder))
        found = [np.asarray(Image.open(answer.label_map)) for answer in answers]
    truth = [np.asarray(Image.open(data / "annotations/validation" / f"{file.stem}.png")) - 1 for file in files]
    rows = list(zip([Image.open(file) for file in files], truth, found, strict=True))
    plot_label_maps(rows, cfg.classes, path)


@picture("digits_detection.jpg", "det")
def objects(path: Path, det: Path) -> None:
    from PIL import Image

    from vssm.engine import load_config
    from vssm.mm import DensePredictor
    from vssm.viz import FoundObject, plot_objects

    cfg = load_config(str(DETECTOR))
    dataset = cfg.val_dataloader.dataset
    annotations = json.loads((Path(dataset.data_root) / dataset.ann_file).read_text())
    names = {entry["id"]: entry["name"] for entry in annotations["categories"]}
    images = annotations["images"][:4]
    files = [str(Path(dataset.data_root) / dataset.data_prefix.img / image["file_name"]) for image in images]
    answers = DensePredictor(cfg, last_checkpoint(det), device="cpu")(files, numbers=True)

    def objects_of(entries):
        return [FoundObject(tuple(entry["bbox"]), names[entry["category_id"]]) for entry in entries]

    truth = {image["id"]: [a for a in annotations["annotations"] if a["image_id"] == image["id"]] for image in images}
    plot_objects(
        [
            (Image.open(file), objects_of(truth[image["id"]]), objects_of(answer.numbers))
            for file, image, answer in zip(files, images, answers, strict=True)
        ],
        path,
    )


@picture("digits_pose.jpg", "pose")
def poses(path: Path, run: Path) -> None:
    """The first held-out scenes: what is true above, what was found below."""
    import tempfile

    import matplotlib.pyplot as plt

    from vssm.engine import load_config
    from vssm.pose import DigitKeypoints, PosePredictor
    from vssm.pose.predict import COLOURS, Pose, draw_poses

    data = DigitKeypoints("val", 4)
    images = [data.read(number) for number in range(4)]
    truth = [[Pose(a.box, a.points, a.visible) for a in data.instances if a.image == n] for n in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        boxes = {f"{folder}/{number}.png": [pose.box for pose in there] for number, there in enumerate(truth)}
        for image, file in zip(images, boxes, strict=True):
            image.save(file)
        predictor = PosePredictor(load_config(str(POSE)), last_checkpoint(run), "cpu", boxes)
        found = [answer.poses for answer in predictor(list(boxes))]
    figure, axes = plt.subplots(2, 4, figsize=(6.88, 3.9), layout="constrained")
    for row, things in zip(axes, (truth, found), strict=True):
        for axis, image, there in zip(row, images, things, strict=True):
            axis.imshow(draw_poses(image, there, 0.3))
            axis.set_axis_off()
    for row, title in enumerate(("truth", "prediction")):
        axes[row, 0].set_title(title, loc="left", fontsize=9)
    dots = [
        plt.Line2D([], [], marker="o", linestyle="", color=colour, markeredgecolor="black", label=name)
        for name, colour in zip(data.metainfo["keypoints"], COLOURS, strict=False)
    ]
    figure.legend(handles=dots, loc="outside lower center", ncols=len(dots), fontsize=9, frameon=False)
    figure.savefig(path, dpi=200)
    plt.close(figure)


@picture("visualize_curves.png", "det")
def detector_curve(path: Path, det: Path) -> None:
    from vssm.viz import plot_learning_curves

    plot_learning_curves([det], path)


@picture("visualize_erf.jpg", "seg", "det")
def fields(path: Path, seg: Path, det: Path) -> None:
    from vssm.viz.commands import draw_receptive_fields, fixed_seed

    runs = {SEGMENTOR: seg, DETECTOR: det}
    with fixed_seed():
        untrained = [subject(config) for config in runs]
    trained = [subject(config, folder) for config, folder in runs.items()]
    draw_receptive_fields(trained, _photographs(4), path, (128, 128), untrained)


@picture("visualize_attention.jpg", "seg")
def attention(path: Path, seg: Path) -> None:
    from vssm.viz.commands import draw_attention

    words = dict(size=(256, 256), pixel=(35, 88), modules=["stages.1", "stages.2"], rollout=True)
    (file,) = _photographs(1)
    _drawn_to(path, lambda out: draw_attention([subject(SEGMENTOR, seg)], [file], out, **words))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)} (default: all)")
    parser.add_argument("--runs", type=Path, default=ROOT / "work_dirs", help="folder of the runs (default: work_dirs)")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where to (default: docs/images)")
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in PICTURES:
            raise UserError(f"There is no picture '{name}'; there are {', '.join(PICTURES)}.")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or PICTURES:
        draw, runs = PICTURES[name]
        missing = [folder for folder in runs if not list((args.runs / folder).glob("epoch_*.pth"))]
        if missing:
            print(f"{name} stays as it is: it needs {'; '.join(RUNS[folder] for folder in missing)}")
            continue
        draw(args.out / name, *(args.runs / folder for folder in runs))
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
