"""`python -m moehls`: the command line."""

from moehls.cli import main

main()
