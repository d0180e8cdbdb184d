"""The configuration of a device.

Reading order:
    config.py        the TOML file, parsed into `Config`; first_config.py: the one that `init` writes
    table.py         one TOML table, read strictly; repository.py: the table `[repository]`
    key_storage.py   the URI that says how the device keys are stored
    families.py      commands for one family or for all of them
"""
