"""The encoder in ONNX Runtime, and how it is made from the one in torch."""
