"""`python -m mega_hf`: what `accelerate launch -m mega_hf` runs."""

import sys

from mega_hf.cli import main

sys.exit(main())
