"""Read, feed and run ONNX models, and lay them out as bundles.

Words:
    interface: names, dtypes and shapes of a model's inputs and outputs.
    sample: one set of inputs, a dict of arrays by input name; samples are an ordered sequence of them.
    session: a loaded model of onnxruntime.
    golden vectors: inputs with the outputs that devices must reproduce within a tolerance.
    scope: one graph of a model; graphs are nested (branches of an If, the body of a Loop).

Reading order:
    inputs, samples, packed_samples   interface of a model; samples from files
    random_inputs        random samples of sizes that a model runs on
    graphs               walks over graphs: weights, names, constants
    sessions             how models are run
    ordered_map          runs side by side, results in order
    model_outline        an ONNX file without its large constants, for reading
    model_files          writing and sizes
    oldest_runtime, model_facts   requirements and contract in the manifest
    child_process        a module in a subprocess (sample_files: its inputs)
    trial_run            the first runs of a model, and its memory
    model_runs           runs in a subprocess, and missing_values, which needs them
    golden_inputs, damage_probe   inputs of golden vectors within a budget (golden_budget)
    golden_vectors       golden vectors and their tolerance
    model_package        the layout of a bundle
"""
