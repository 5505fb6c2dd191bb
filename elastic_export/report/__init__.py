"""The report: tables, plots and one self-contained page, made from a result file alone."""
