"""Create releases: from a release file to published files.

Reading order:
    pipeline        runs the steps in order and reports
    release_plan    the contents of a release file as values
    release_file    reads a release file
    toml_table              a TOML table, read strictly
    release_file_checks     checks what depends on several keys or on other files
    draft           the values that steps exchange
    steps/          one module per step
    add_patches     adds patches to a published release
    fire_drill      breaks a model on purpose, to test devices
    release_record  records the build for attestations
    plain_bundles   builds, diffs and verifies bundles without a repository
    inspect_path    shows what a file or folder is
"""
