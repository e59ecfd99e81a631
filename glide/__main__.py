"""Run glide's command line when Python is started with `python -m glide`."""

from glide.cli import main

main()
