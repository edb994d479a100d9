"""`python -m vit_flax` is `vit-flax`."""

import sys

from vit_flax.cli.main import main

sys.exit(main())
