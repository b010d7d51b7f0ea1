"""Search one checkpoint at three resolutions: a pool of experts from a single network and images of several sizes.

    python examples/three_resolutions.py --expert timm/resnet50.a1_in1k --sizes 128 160 \
        --dataset ILSVRC/imagenet-1k --split validation

Each smaller input size is an expert of its own. It costs less because it has fewer pixels, and shares the weights of
the checkpoint. `image_size_by="resize"` shows the whole image at the smaller size; "crop", the default, its middle.
"""

import argparse

from pertinence import DataArguments, DispatcherSearch, PertinenceError, SearchArguments
from pertinence.data.loading import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expert", default="timm/resnet50.a1_in1k", help="Hub id or folder; default: %(default)s.")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 160], help="Sides in pixels, besides its own.")
    parser.add_argument("--dataset", default="ILSVRC/imagenet-1k")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--output-dir", default="runs/three-resolutions")
    options = parser.parse_args()

    smaller = [{"repo_id": options.expert, "image_size": size, "image_size_by": "resize"} for size in options.sizes]
    args = SearchArguments()
    images = load_images(DataArguments(options.dataset, options.split))
    result = DispatcherSearch([*smaller, options.expert], images, args).run()
    print(result.evaluation)
    result.save(options.output_dir)

    weights = {id(parameter): parameter.numel() for parameter in result.model.experts.parameters()}
    print(f"\n{len(result.model.experts)} experts, {sum(weights.values()):,} parameters in all:")
    for entry in result.model.config.experts:
        print(f"  {entry['name']}: {entry['gmacs']:.4g} GMACs")


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
