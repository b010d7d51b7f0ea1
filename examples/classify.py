"""Load a searched model from the Hub, or from a folder, and classify image files.

    python examples/classify.py cat.jpg ship.png --model user/pertinence-cifar10
    python examples/classify.py cat.jpg --model runs/cifar10 --gmacs 0.05 --trust-remote-code

The first lines come from the plain `pipeline`. The lines below them show for each image which experts ran and what
they cost, at the budget that was asked for.
"""

import argparse

from transformers import pipeline

import pertinence  # registers the model type `pertinence`
from pertinence import PertinenceError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="Files or addresses of images.")
    parser.add_argument("--model", default="user/pertinence-cifar10", help="Hub id or folder; default: %(default)s.")
    parser.add_argument("--gmacs", type=float, help="GMACs that an image may cost on average; default: the model's.")
    parser.add_argument("--trust-remote-code", action="store_true", help="Run the code that experts bring with them.")
    options = parser.parse_args()

    classify = pipeline("image-classification", model=options.model, trust_remote_code=options.trust_remote_code)
    model: pertinence.PertinenceForImageClassification = classify.model
    if options.gmacs is not None:
        model.set_budget(gmacs=options.gmacs)
    print(f"Operating point: {model.config.operating_point}")
    for image, answers in zip(options.images, classify(options.images, top_k=3), strict=True):
        print(f"{image}: " + ", ".join(f"{answer['label']} {100 * answer['score']:.1f} %" for answer in answers))

    # The same model, called directly, returns more than the pipeline does.
    out = model(**classify.image_processor(options.images))
    names, largest = model.config.expert_names, model.config.experts[-1]
    for image, ran, gmacs in zip(options.images, out.experts_run, out.gmacs.tolist(), strict=True):
        experts = ", ".join(name for name, did_run in zip(names, ran, strict=True) if did_run)
        saved = 100 * (1 - gmacs / largest["gmacs"])
        print(f"{image}: ran {experts}; {gmacs:.4g} GMACs, {saved:.0f} % less than {largest['name']} alone")


if __name__ == "__main__":
    try:
        main()
    except (PertinenceError, OSError) as error:  # such as no connection
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
