"""Engines and runners: what turns an ONNX file into something that runs, and runs it."""
