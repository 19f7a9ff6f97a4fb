"""Reports for people: one HTML page with plots, tables and a summary, made from an evaluation's JSON.

It holds the page, its sections, the plots and the wording of numbers; it doesn't know how a number was measured, and
starts no model and no server. Begin reading in `report.py`.
"""
