"""Reports: HTML pages, plots and summaries.

Begin with `report.py`.
"""
