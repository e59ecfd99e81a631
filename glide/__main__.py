"""`python -m glide`."""

from glide.cli import main

main()
