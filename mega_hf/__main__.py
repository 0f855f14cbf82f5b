"""`python -m mega_hf`: what `accelerate launch -m mega_hf` runs."""

from mega_hf.cli import program

program()
