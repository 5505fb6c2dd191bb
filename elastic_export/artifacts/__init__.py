"""The content-addressed store that stages talk through; no torch in here."""
