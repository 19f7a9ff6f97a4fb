"""`python -m lethe.server.cli` is the command `lethe`."""

from lethe.server.cli.main import main

main()
