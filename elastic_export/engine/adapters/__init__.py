"""What differs between the Python modules of TensorRT 8, 10, 11 and TensorRT-RTX."""
