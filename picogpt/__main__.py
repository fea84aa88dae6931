"""Runs the command `picogpt` as `python -m picogpt`."""

import sys

from picogpt.cli import main

sys.exit(main())
