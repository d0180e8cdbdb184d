"""The configuration of a device.

Reading order:
    config.py        the TOML file, parsed into `Config`
    key_storage.py   the URI that says how the device keys are stored
    families.py      commands for one family or for all of them
"""
