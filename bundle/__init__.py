"""The contract between packager and device: the formats of all exchanged files (docs/format.md).

Words: bundle (the files of one variant), manifest (describes a release and its variants), patch (instructions that make
a bundle from another one), blob (an encrypted patch), envelope (a content key sealed to a cohort or device), rollout
(selects the release of a channel), fleet document (the cohorts and their public keys), frame (a unit of encryption).

Reading order:
    strict_json.py       canonical JSON, and the strict reader that all documents use
    files.py             the files of a bundle and the bundle digest
    manifest.py          the manifest; variant.py has its variants, requirements.py what a device needs for one,
                         contract.py its tensors and its health contract
    rollout.py           which release a channel runs, and for which devices
    fleet.py             cohorts, epochs and public keys
    acceptance.py        the rules by which a device accepts a release
    trust/               the trust check: TUF, trust state, time
    frames.py            encryption of blobs and of stored bundles
    envelope.py          keys sealed to a recipient; key_sizes.py has the sizes
    patch/               the patch format and its decoder
    golden/              golden vectors: inputs, and what the outputs must look like
    enrollment.py        how a device asks to be registered
    device_report.py     signed reports of update outcomes; report_weights.py says which reasons count
    vital.py             what a device says about itself once an interval
    repository_paths.py  where files lie in a repository
    errors.py            errors, kinds and exit codes
    console.py           output of both command lines; suggestion.py has "did you mean"
    version.py           the version of the distribution
"""
