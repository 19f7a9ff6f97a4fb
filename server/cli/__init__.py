"""The `lethe` command.

It holds no logic of its own: commands call the packages that do the work. Begin with `main.py`.
"""
