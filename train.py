"""Train a model: python train.py --data sample. The same as `picogpt train`; see --help."""

import sys

from picogpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
