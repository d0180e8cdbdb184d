"""Make smaller models from float models, and check how far their outputs are from the float model's.

Words:
    reference model: the float model that a candidate is compared with.
    candidate: a quantized model that may be shipped; a trial is one attempt to build and judge one.
    scheme: int8, int4, fp16 or fp32; a method is one way to make it (int8: static, dynamic, weights).
    levels: the integers of a quantized array; a level q stands for the number scale * (q - zero point).
    gate: the accuracy check against the reference model; its verdict is pass, fail or inconclusive.
    calibration samples, held-out samples: the two halves of the inputs; the verdict is on the held-out half.
    node error: the error that quantizing one node alone causes.
    promoted: given more bits than the method gives, but not float.
    baseline: plain quantization of the same model, whose error is a unit for other models' errors.

Reading order:
    schemes              quantize_model: the whole path from a float model to a report
    prepare              normalizes the graph without changing its outputs
    candidate_search     which methods are tried in which order, and repair
    candidates           builds the candidates of one model
    static, dynamic, weight_only, int4, fp16   one method each
    integer_weights, nbits, activation_ranges  levels and ranges that the methods share
    gate, agreement      the verdict, and the figures behind it
    user_metric          a metric of the user's own, beside the gate
    sensitivity          node errors, and which nodes to repair
    baseline, reference_checks, lint, prune    further checks and pruning
    quantization_report, html_report           results
    update_aware/        quantize near a base that devices have
"""
