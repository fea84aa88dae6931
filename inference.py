"""Generate text: python inference.py --prompt "The sun". The same as `picogpt generate`; see --help."""

import sys

if __name__ == "__main__":
    try:
        from picogpt.cli import main

        sys.exit(main(["generate", *sys.argv[1:]]))
    except KeyboardInterrupt:  # Ctrl-C during the imports
        sys.exit(130)
