"""Encode jobs to frames: choose predictor and coder for tensors, and compress everything else.

Words: a coding plan is the choice for one tensor; a fit is a set of predictor parameters (PARAM) with its cost; a
sample is the part of a tensor on which plans are compared; residuals, keys, parts and planes are those of
docs/format.md section 9.7.

Reading order:
    tensor_job, copy_job        the jobs, as values that can be sent to another process
    predictors                  fits: per-channel gains and low-rank products
    coding_plan, codec_search   the cost of a plan on a sample, and the search for the cheapest one
    entropy, residual_partitions   residuals to KEYED data, parts and planes
    encode_tensor               a tensor job to frames PARAM, TYPED or STREAM
    encode_edits                arrays of which few elements differ, to frames EDIT
    encode_untyped, zstd_prefix    untyped bytes to frames BYTES with a dictionary
    encode_stream, encode_delta    frames STREAM and DELTA
    encode_file                 a whole file that is not a model, by the smallest of all these
    size_estimate               quick estimates that decide whether generic codecs are tried
"""
