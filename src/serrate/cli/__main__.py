"""`python -m serrate.cli`, for torchrun."""

import sys

from .main import main

sys.exit(main())
