"""The float network: typed token-matrix operations recognised from an ONNX graph."""
