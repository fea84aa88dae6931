"""Let a trained model write: python inference.py --prompt "The sun". The same as `picogpt generate`; see --help."""

import sys

from picogpt.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
