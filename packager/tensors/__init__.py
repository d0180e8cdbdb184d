"""Where typed arrays lie in model files, found without the frameworks that wrote them.

Only `packager` parses: a patch says what to do with ranges of bytes, so the device needs none of this.
"""
