"""Lending: applications borrow the verified files of a release, and judge those that they run.

Words: a *reader* may borrow files, a *judge* may send a health verdict. Both are users, groups or systemd units of this
device, named by its owner in the configuration. A *borrowed* file is a descriptor of a sealed memory file.

Files, in reading order:
    access       who may read and who may judge, by peer credentials
    protocol     the messages of the socket (docs/apps/protocol.md), parsed strictly
    lender       unseals the files of the active bundle and counts what each client holds
    app_socket   the server of `apps.sock`
    export_folder  named files in memory, for applications that can read nothing else
    client       the client, standard library only; `airweights.open_bundle` uses it
    agent_runtime  a model inside an application that follows the agent; it loads numpy and a runtime
"""
