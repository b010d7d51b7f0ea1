"""Classify images with an exported model of pertinence, without torch: one line for each image.

python classify.py MODEL IMAGE...
"""

from __future__ import annotations

import argparse
import sys

from pertinence_runtime import PertinenceError, load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a model whose experts were exported")
    parser.add_argument("images", nargs="+", metavar="image", help="files of images")
    parser.add_argument("--operating-point", help='such as "fastest"; default: that of the model')
    parser.add_argument("--threads", type=int, help="threads of each graph; default: those of ONNX Runtime")
    options = parser.parse_args()
    try:
        model = load(options.model, operating_point=options.operating_point, threads=options.threads)
        for image in options.images:  # one by one, so that only the graphs that run are ever opened
            answer = model(image)
            print(f"{image}\t{answer.label}\t{answer.score:.3f}\t{answer.expert}", flush=True)
    except PertinenceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
