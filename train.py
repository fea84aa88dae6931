"""Train a model: python train.py --data sample. The same as `picogpt train`; see --help."""

import sys

if __name__ == "__main__":
    try:
        from picogpt.cli import main

        sys.exit(main(["train", *sys.argv[1:]]))
    except KeyboardInterrupt:  # before there was anybody to hear it
        sys.exit(130)
