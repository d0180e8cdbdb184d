"""Remote repositories: push publications to stores and registries, pull them back, work on them there.

Words:
    store       a folder, bucket or registry that has published files (packager.stores)
    master copy the copy of a repository that the next publication builds on: a folder, or a store
    mirror      any other copy; devices may read it

Reading order:
    upload          the files of a publication, and in which order they are sent
    publications    who published what and when, recorded in a store
    push            send a publication to a store; swap the timestamp last
    push_registry       send a publication to an OCI registry, as a mirror
    pull            fetch a publication from a store, and verify it
    remote_repository   a repository whose master copy is a store
"""
