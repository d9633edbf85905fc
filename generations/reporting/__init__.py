"""A run's results as pages and pictures to look at; `generations/report.py` is the entry."""
