"""Golden vectors: inputs of a model, and what its outputs must look like (docs/format.md section 8).

A device runs the inputs and must notice wrong outputs; it does not need all right ones. Golden vectors detect damage,
not malice: a key that signs a release also signs its golden vectors.

Words:
    sample         one request: an array for each input of the model
    input code     how an array is stored: as it is, as small integers, as one value, or as noise
    whole output   a small float output, whose elements are all kept
    sketched output  a large float output, kept as part of a count sketch of the sample
    exact output   integers, Booleans or strings, kept as a SHA-256
    scale          the units in which the elements of an output, or of one of its channels, are compared
    tolerance      relative RMS error that is allowed, `golden_relative_rms_ppm` of the health contract

Reading order:
    inputs          input codes
    scales          scales of outputs and channels
    sketch          what is kept of the outputs of one sample
    comparison      the checks of a device
    golden_file     the file
    relative_error  relative RMS error of two whole outputs, for shadow mode and the packager
"""
