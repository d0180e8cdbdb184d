"""Worker processes, and the supervisor's client of them.

Words: call (a request of the supervisor with descriptors and one reply), jail (the restrictions of a worker),
sealed bundle (a bundle encrypted under the device's storage key).

Reading order:
    worker_pool       the supervisor's client; fetcher_client and patcher_client: its calls of these two
    worker_processes  its processes: started at their first call, each in its jail
    verifier          reads signed metadata; fetcher: downloads; patcher: decrypts, patches, seals
    blob_transfer     transfers of one blob; response_body: a response or a file, read in pieces
    http_client       requests with redirects, credentials and proxies; http_connection: its connections
    http_response     a response with its body still unread
    mqtt_sender       lines sent through an MQTT broker
    key_opener        opens keys in a TPM or token; the only worker that talks to it
    probe             tries a candidate; model_process: serves a model
    sealed_bundle     format of a bundle in the store; partial_download: state of a download
    adapter_check     checks a personal adapter in a probe process
    tuf_conformance   command line for the TUF conformance suite
"""
