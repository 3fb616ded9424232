"""Predicts on images with any model, draws what it says and writes it down.

python tools/predict.py IMAGE... --model biformer_tiny --checkpoint biformer_tiny.pth --out DIR
python tools/predict.py FOLDER --model CONFIG --checkpoint work_dirs/NAME/epoch_12.pth --out DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from visattn.tools._cli import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, or folders of them")
    parser.add_argument("--model", required=True, help="configuration of any task, or timm's name")
    parser.add_argument(
        "--checkpoint", help="weights, of a run or the authors' (default: those that timm has)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the accelerator if any)")
    parser.add_argument("--topk", type=int, default=5, help="classes of a classification")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, help="least score of an instance"
    )
    parser.add_argument("--no-pictures", action="store_true", help="write numbers alone")
    return parser.parse_args(argv)


def predict(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong, after all other images have been predicted."""
    args = parse_args(argv)
    from visattn.zoo.errors import DataError
    from visattn.zoo.inference import Failure, load_predictor, predict_each
    from visattn.zoo.inference.images import find_images
    from visattn.zoo.inference.saving import save_results

    images = list(find_images(args.images))
    predictor = load_predictor(
        args.model, args.checkpoint, args.device, args.topk, args.score_threshold
    )
    failures = []
    results = predict_each(predictor, images, args.batch_size)
    for result in save_results(predictor, results, args.out, not args.no_pictures):
        if isinstance(result, Failure):
            failures.append(result.error)
            print(f"{result.path}: failed")
        else:
            print(f"{result.path}: {describe(result)}")
    print(f"written to {args.out}")
    if failures:
        count = f"{len(failures)} of {len(images)} images"
        raise DataError("\n  ".join([f"{count} could not be predicted on", *failures]))


def describe(result: object) -> str:
    """A line on a result: the best classes, or how often each occurs."""
    from collections import Counter

    from visattn.zoo.inference import Classification, Segmentation

    if isinstance(result, Classification):
        pairs = zip(result.labels, result.scores, strict=True)
        return ", ".join(f"{label} {100 * score:.1f} %" for label, score in pairs)
    if isinstance(result, Segmentation):
        shares = sorted(result.to_json()["shares"].items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares[:5])
    counts = Counter(result.labels).most_common()
    return ", ".join(f"{count} {name}" for name, count in counts) or "nothing"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(predict, argv)


if __name__ == "__main__":
    sys.exit(main())
