"""The durable state of the device: journal, bundle store, device directory.

Words: record (one row of the journal: kind, key, JSON body), sealed (encrypted under the device's storage key),
spool (the folder of partial downloads), incoming (a file that is not complete yet).

Reading order:
    device_directory   paths of the device directory, its lock, its public identity
    bundle_store       sealed bundles by digest, and the spool
    journal_reader     the state of updates, for reading; database: its records in SQLite
    journal            changes to it, as transactions
    journal_schema     table, version and migrations of the journal's file
    adapter_store      the personal adapter of a family
    cohort_envelopes   envelopes that opened on this device
"""
