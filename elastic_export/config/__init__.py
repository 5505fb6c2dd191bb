"""Schemas of everything a user writes or a run leaves behind; no torch in here."""
