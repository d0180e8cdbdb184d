"""Quantize a new float model so that the patch from the devices' quantized model (the base) is small.

Words:
    base: the quantized model on the devices; its graph is the template that the update fills with new numbers.
    grid: a weight's scales s and zero points z in the base; a level Q stands for the number s * (Q - z).
    rate weight (lambda): the weight of one bit in D + lambda R, in relative error energy of the model's outputs.
    requantized: quantized from scratch, with new scales.
    baseline: plain quantization of the new model by the base's method, without regard to the base.
    unchanged base: the base itself, judged against the new float model.

Reading order:
    quantize_update      the method on one page, and its one public function
    template             matches the base's quantized weights with the new float model's
    layers               the order of the layers, and the rows that each multiplies
    solver               one solution at a given rate weight
    coordinate_descent   chooses the levels of one matrix
    row_selection        which rows of a layer's input count, and how much
    layer_statistics     second moments of a layer's input
    gradients, adjoints  how much the outputs depend on an inner value
    output_sensitivity   how much the outputs depend on a weight
    float_prefix         runs the float model up to a layer, with the levels chosen so far
    activation_refit     ranges of activations
    fill_template        writes levels, biases and float constants into the base
    rate_search          finds the rate weight
    matching_baseline    the baseline
"""
