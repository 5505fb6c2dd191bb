"""A machine that reads pickles without importing or calling anything."""
