"""The evaluation of a policy: what the model forgets, what leaks, and what it costs, next to other systems.

It holds the data sets, the systems under comparison, the metrics, and the code that collects answers from running
gateways; it doesn't know how a report is drawn (`evaluation/reporting/`) or how prompts are disguised
(`evaluation/attacks/`). Begin reading in `run.py`, the command `lethe evaluate`.
"""
