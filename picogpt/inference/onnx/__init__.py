"""A model as an ONNX file: the graph, what is written beside it, and the session that runs it."""
