"""Report pages and contact sheets of a run; `generations/report.py` is the entry."""
