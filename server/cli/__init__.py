"""The command `lethe`: one module per command.

Nothing here decides on requests; commands call the other packages. Begin with `main.py`, which builds the parser.
"""
