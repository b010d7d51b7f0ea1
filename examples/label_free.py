"""Search without labels: an answer counts as right if the largest expert gives it, and figures are called agreement.

    python examples/label_free.py --dataset folder/of/images
    python examples/label_free.py --experts user/resnet8 user/resnet56 --dataset user/unlabelled --max-loss 0.01

Use images like those that the model will see; for this search a data set needs only an image column.
"""

import argparse

from pertinence import DataArguments, DispatcherSearch, PertinenceError, SearchArguments
from pertinence.data.loading import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs="+", default=["user/resnet8", "user/resnet20", "user/resnet56"])
    parser.add_argument("--dataset", default="user/unlabelled", help="Hub name, or a folder of images.")
    parser.add_argument("--split", default="train")
    parser.add_argument("--max-loss", type=float, default=0.02, help="Share of answers that may differ.")
    parser.add_argument("--output-dir", default="runs/label-free")
    options = parser.parse_args()

    images = load_images(DataArguments(options.dataset, options.split), needs_labels=False)
    args = SearchArguments(labels="agree")
    result = DispatcherSearch(options.experts, images, args).run()
    print(result.evaluation)

    # No point agrees more with the largest expert than that expert itself, so none is lossless: set what may be lost.
    point = result.model.set_budget(max_accuracy_loss=options.max_loss)
    saved = 100 * (1 - point.report.gmacs / result.model.config.experts[-1]["gmacs"])
    print(f"\n{point.name}: agrees on {100 * point.report.accuracy:.2f} % of unseen images, saves {saved:.0f} %")
    result.save(options.output_dir)  # the chosen point is the saved model's default


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
