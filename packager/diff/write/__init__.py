"""Plan the jobs of a patch, write their frames, and keep the smallest patch.

Words: a planned job is a job with its position in the patch and its name in the report; pending bytes wait in the
decoder until the bytes before them are written; a generic codec knows nothing of arrays (zstd, bsdiff).

Reading order:
    mapped_bundle, planned_job   one side of a patch, and a job with its position
    plan_jobs, split_tensors     a bundle cut into jobs, so that at most 2 MiB wait in the decoder
    frame_writer                 frames written so far, and the limits that they need
    typed_codec, generic_codecs  a patch by jobs; a patch by zstd or bsdiff
    make_patch                   `make_patch`: try codecs, keep the smallest patch, write its header
    check_patch                  the finished patch is applied once
    patch_report, patch_table, patch_html   where the bytes of a patch went
"""
