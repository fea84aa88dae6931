"""A model as an ONNX file: the graph, its weights and metadata, and the session that runs it."""
