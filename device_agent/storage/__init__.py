"""The durable state of the device: journal, bundle store, device directory.

Words: record (one row of the journal: kind, key, JSON body), sealed (encrypted under the device's storage key),
spool (the folder of partial downloads), incoming (a file that is not complete yet).

Reading order:
    device_directory   paths of the device directory, its lock, its public identity
    bundle_store       sealed bundles by digest, and the spool
    journal            the state of updates, as transactions; database: its records in SQLite
    journal_schema     table, version and migrations of the journal's file
    adapter_store      the personal adapter of a family
"""
