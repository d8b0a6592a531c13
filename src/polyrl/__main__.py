"""`python -m polyrl` is `polyrl`."""

from polyrl.cli.main import main

main()
