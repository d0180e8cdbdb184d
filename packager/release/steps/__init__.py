"""The steps of a release, one module per verb, in this order.

    quantize       choose or create the model file of each variant
    compare        compare it with the reference model (the gate)
    record_golden  record contract, golden vectors and health contract
    assemble       build the bundle folder
    diff           create patches
    encrypt        encrypt patches, seal content keys to cohorts
    sign           put everything into the repository, and sign
    publish        publish

Each `run(draft)` reads values of earlier steps from the `Draft` and adds its own.
"""
