"""The path of an update; read `update.py` first.

Words: candidate (the release being tried), staged (probed, waiting for the daemon), switch (the assignment that
redirects requests), probation (the candidate serves under watch).

Reading order:
    update          one update from its check to its result
    channel_check   the checks of a release before it is fetched, and again before it serves
    download_count  received bytes, and the metered limit on them
    candidate       the candidate from its probe to its probation
    probation_watch repeats, golden checks and restarts in a probation
    probe_client    probes and their errors
    context         everything that an update uses, and garbage collection
    recovery        after a start: finish or undo the recorded step; rebuild a damaged journal
    rollback        whether an operator may return to the previous release
    preview         what an update would do now
    adapter_change  attach and detach the personal adapter
"""
