"""AP of a pose that looks at no image: each keypoint where it is on average in the boxes of the training part.

The baseline of `configs/pose/heatmap_hrvmamba-pico_digits.py`, over the same data:

    python benchmarks/constant_pose.py
"""

import argparse

import numpy as np

from vssm.pose import DigitKeypoints
from vssm.pose.metrics import average_precision


def inside(one) -> np.ndarray:
    """Its keypoints as shares of the box (K, 2)."""
    return (one.points - one.box[:2]) / one.box[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=600, help="training scenes")
    parser.add_argument("--val", type=int, default=120, help="scenes to test on")
    args = parser.parse_args()
    train, val = DigitKeypoints("train", args.train), DigitKeypoints("val", args.val)
    visible = np.stack([one.visible for one in train.instances])[..., None]
    mean = (np.stack([inside(one) for one in train.instances]) * visible).sum(0) / visible.sum(0)
    found = []
    for one in val.instances:
        points = mean * one.box[2:] + one.box[:2]
        keypoints = np.concatenate([points, np.ones((len(points), 1))], axis=1).ravel().tolist()
        found.append(dict(image_id=one.image, category_id=1, keypoints=keypoints, score=1.0))
    metrics = average_precision(val.ground_truth(), found, val.metainfo["sigmas"])
    print(f"constant pose: AP {metrics['AP']:.1f}, AP50 {metrics['AP50']:.1f} on {len(found)} digits")


if __name__ == "__main__":
    main()
