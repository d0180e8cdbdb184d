"""A repository: static files that devices trust, and the folder to stage, sign and publish them.

Words:
    role        a TUF role with its keys and its threshold: root, targets, snapshot, timestamp, and the delegated roles
                release-FAMILY, rollout-FAMILY and fleet
    document    the signed metadata of a role; a role's next document has the next version
    target      a file that a role lists by length and SHA-256: a manifest, a rollout, the fleet document
    published   what devices see: the documents that the newest timestamp names
    staged      changed in `staging/`, not published
    client check  the publisher runs the device's own checks on the publication before it goes out

The path of a change: stage it (targets and documents in `staging/`), sign it, publish it. `sign` and `publish` can run
on one machine, or the signatures come from the machines where the keys are.

Detached signing, the ceremony:
    1. Build machine: `packager repo prepare` turns the staged changes into documents and writes a signing request with
       the documents, the published ones, and the targets that both list. It prints a summary and a digest.
    2. Carry the request to each signer. It contains no secret, and no signer trusts it.
    3. Signer: `packager repo sign REQUEST` recomputes the summary from the bytes to be signed, the targets that they
       name by digest, and this signer's signing history (what its keys signed before).
    4. Signer: read the summary. Compare the digest with the build machine's and the other signers'.
    5. Signer: `packager repo sign REQUEST -o FILE` records the documents in the signing history, then writes the
       signature file.
    6. Build machine: `packager repo add-signatures FILE...` verifies each signature against the staged document. Once
       all documents below them are complete, the online keys sign snapshot and timestamp.
    7. Build machine: `packager repo publish` checks thresholds, runs the client check and publishes.

Reading order:
    layout              paths of a repository's folder, atomic writes, the publisher's lock
    tuf_documents       create TUF documents with versions and expiries
    published           read and verify the published documents; count signatures
    staging             the staging folder, and how it becomes documents
    staged_view         staged targets over published ones
    listing             what a repository lists: families, releases, rollouts, fleet
    repository          stage, sign, publish, refresh
    publishing          the checks of a publication, and the order in which files go out
    client_check        the device's checks on a publication that is not out yet
    document_rules      what a document of a role may contain at all
    signing_request     the request file and the signature file
    signing_summary     what a signature would change, as text
    signing_history     what a signer's keys signed before
    detached_signing    the steps of the ceremony above
    creation, new_keys  the first publication and its keys
    role_changes        add, remove and replace keys; thresholds; counter epochs
    devices                     enroll and revoke devices, rotate cohort keys
    repository_status   keys, thresholds, expiries and open signatures of each role
    garbage_collection, offline_pack    delete what nothing lists; copy a part for devices without a network
    workspace           plain bundles and content keys of earlier releases, never served
"""
