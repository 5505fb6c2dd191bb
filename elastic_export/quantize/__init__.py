"""Calibration, the quantization record, fake quantization and the accuracy guard."""
