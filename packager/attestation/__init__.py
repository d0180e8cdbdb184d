"""Attestations of a release for other tools: provenance, bill of materials, model signature.

Devices never read them, and no release depends on them: the signed manifest decides.

Words: statement (what an in-toto attestation asserts about its subjects), subject (a file, by name and digest),
envelope (DSSE: a statement with its signatures), build record (how a release was built, stored beside its keys).

Reading order:
    build_record        the stored facts of a build
    provenance          the SLSA v1 provenance statement
    bill_of_materials   the CycloneDX bill of materials with model cards
    attestation_files   sign both as envelopes, write the files, verify them
    attest              the attestations of a release that a repository lists
    model_signature     OpenSSF Model Signing of a plain bundle
"""
