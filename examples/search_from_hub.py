"""Search a dispatcher for checkpoints and images of the Hub, save it, and push it if a repository is named.

    python examples/search_from_hub.py --experts user/resnet8 user/resnet20 user/resnet56 --dataset uoft-cs/cifar10
    python examples/search_from_hub.py --experts timm/resnet18.a1_in1k timm/resnet50.a1_in1k timm/resnet152.a1_in1k \
        --dataset ILSVRC/imagenet-1k --split validation --image-limit 10000 --push-to-hub user/pertinence-imagenet

`pertinence search` does the same from the command line. The split must hold images that no expert was trained on.
"""

import argparse

import torch

from pertinence import DataArguments, DispatcherSearch, PertinenceError, SearchArguments
from pertinence.data.loading import load_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", nargs="+", default=["user/resnet8", "user/resnet20", "user/resnet56"])
    parser.add_argument("--dataset", default="uoft-cs/cifar10")
    parser.add_argument("--split", default="test")
    parser.add_argument("--image-limit", type=int, help="Number of images to use, drawn at random.")
    parser.add_argument("--output-dir", default="runs/from-hub")
    parser.add_argument("--push-to-hub", metavar="REPO", help="Repository that gets model, card and record.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run the code that experts bring with them.")
    options = parser.parse_args()

    images = load_images(DataArguments(options.dataset, options.split))
    if options.image_limit is not None:
        drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images = images.select(drawn[: options.image_limit])
    args = SearchArguments(
        trust_remote_code=options.trust_remote_code,
        output_dir=options.output_dir,  # a killed search continues from here
    )
    result = DispatcherSearch(options.experts, images, args).run()
    print(result.evaluation)  # on a fifth of the images, which were held out first
    result.save(options.output_dir)
    if options.push_to_hub is not None:
        print(result.push_to_hub(options.push_to_hub).commit_url)


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
