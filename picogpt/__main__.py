"""`python -m picogpt`: the same as the command `picogpt`."""

import sys

from picogpt.cli import main

sys.exit(main())
