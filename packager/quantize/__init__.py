"""Make smaller models from float models, and check how far their outputs are from the float model's.

Words:
    reference model: the float model that a candidate is compared with.
    candidate: a quantized model that may be shipped; a trial is one attempt to build and judge one.
    scheme: what is asked for: int8 (or one of its methods: int8-weights, int8-static, int8-dynamic), int4, fp16, fp32.
    method: one way to make it: static, dynamic, weights, int4, fp16.
    target: the CPUs that run the model.
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
    integer_weights, moved_weights, nbits, activation_ranges  what the methods share: levels, weights, ranges
    targets              CPUs, what they require, and which form is tried first there
    latency              processor time relative to float, for the gate on speed
    gate, agreement      the verdict, and the figures behind it
    user_metric          a metric of the user's own, beside the gate
    sensitivity          node errors, and which nodes to repair
    baseline, reference_checks, lint, prune    further checks and pruning
    quantization_report, html_report           results
    update_aware/        quantize near a base that devices have
    jobs/                quantizations in workers of an executor
"""
