"""Apply patches: make the files of one bundle from those of another, or without a base.

The format is docs/format.md section 9; the encoder is packager/diff. Nothing here parses a model, and nothing here
writes to anything but the caller's `Target`.

Words:
    address space   the concatenated bytes of a bundle's files; an address is an offset into it
    frame           one instruction of a patch: COPY, BYTES, DELTA, STREAM and MORE, PARAM, TYPED, EDIT, END
    cursor          the next target address to write; it only grows (`Cursor` in numbers.py reads a payload instead)
    pending         decoded ahead of the cursor, so it waits in memory
    element, bits   one number of an array, and its bits as an unsigned integer of the same width
    ordered         an element's bits as a signed integer that grows with the element's value
    prediction      elements computed from the base's
    residual        ordered target minus ordered prediction, a signed integer of the element's width
    rounding class  how far a computed prediction was from the element that it was rounded to, 0 to 3
    part, plane     a run of packed integers, and all bytes of one significance of a run of integers
    section         a run of bytes inside a payload, compressed or not

Reading order:
    limits          memory limits of a decoder, and those that a patch declares
    container       header and frames with their checksums
    address_space   base and target as address spaces, and the bytes that wait
    apply           `apply_patch`, the entry point
    numbers, sections, ranges, coders   the parts that payloads are made of
    delta, stream, edits                the ops DELTA, STREAM and EDIT
    elements, parameters, prediction, keyed, typed   the ops PARAM and TYPED
    single_thread, steady_heap          settings of the process while a patch is applied
"""
