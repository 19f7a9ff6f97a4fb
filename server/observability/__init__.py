"""What operators observe: metrics, the audit log, event-loop delay, and memory returned to the system.

Nothing here knows what a record or a metric means to the guard. Begin with `metrics.py`.
"""
