"""Stores: the places that published files are pushed to, and pulled from.

Reading order:
    store           what a store can do, and the rules that every one keeps
    folder_store    a folder, for `file:` URLs
    object_store    S3, Google Cloud Storage and Azure
    registry_client OCI registries
    open_store      from a URL to its store
    errors          every error of a store
"""
