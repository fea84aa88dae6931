"""Train a model: python train.py --data sample. The same as `picogpt train`; see --help."""

import sys

if __name__ == "__main__":
    try:
        from picogpt.cli import main

        sys.exit(main(["train", *sys.argv[1:]]))
    except KeyboardInterrupt:  # Ctrl-C during the imports
        sys.exit(130)
