"""Create patches between two model bundles (decoder: bundle/patch, docs/format.md section 9).

Words:
    array           a typed region of a file, found by packager/tensors
    tensor          an array, or several small arrays of one type, that is coded as one sequence of elements
    job             a piece of work that becomes frames: copied ranges, edited ranges, a tensor, or untyped bytes
    frame           one instruction for the decoder
    prediction      what the decoder computes for an array from the base
    residual        ordered target minus ordered prediction, signed integers
    edit            one element of a copied range that differs from the base
    structure       the untyped bytes of a model file between its arrays
    counterpart     the base file that a target file most likely comes from

Reading order:
    bundle_folder, byte_range   bundles as folders on this machine; byte positions and ranges in them
    match/          which base array each target array comes from: by name, content, nearest sample
    encode/         per job: choose predictor and coder on a sample, and encode to frames
    write/          plan the jobs so that at most 2 MiB wait in the decoder, write frames, keep the smallest patch

`write.make_patch.make_patch` is the entry point.
"""
