"""Find the typed arrays in model files without the frameworks that wrote them.

Only `packager` parses models. A patch names ranges of bytes, so devices need none of this.

Words:
    region      an array of numbers in a file: offset, size, element type, name, shape
    external    in another file: an ONNX model names its data files by path

Reading order:
    region          `Region`, and the checks that every parser's result goes through
    find_regions    `find_regions`, the entry point: choose the parser by a file's first bytes
    flat_files      safetensors, GGUF, NumPy
    onnx_wire       ONNX, at the level of protocol buffers
    tflite          TFLite flatbuffers
"""
