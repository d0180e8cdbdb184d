"""`packager demo`: a demonstration of the whole product on one machine, with checks.

Reading order:
    scenes            the scenes, in order, and their checks
    world             repository, web server, device and load; the actions of the scenes
    demo_models       the models: a published one (published_model, file_type_model), a small one that is created
                      (local_model), both fine-tuned (head_refit) on snippets of files (snippets), or the user's
    demo_device       the device, driven by its command line
    http_site         the web server, and attacks on it
    traffic           the load process (load_generator) and its evaluation
    inference_client  a client of the endpoint
    plaintext_scan    searches files for an unencrypted model
    update_sizes      the bytes of the update, beside other ways
    demo_report       the report

`packager demo apps`: apps_demo, with the applications of app_programs.
`packager demo fleet`: fleet_demo, with fleet_models and collector.
"""
