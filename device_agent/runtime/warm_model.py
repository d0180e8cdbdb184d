"""A TFLite model of one float layer, which LiteRT loads before the jail of a worker closes."""

import base64
import zlib
from typing import Final

_PACKED: Final = (
    "c-mc1s}jO65Zpor+9A_HR3Mqb;L$u(6%v6!FlaoWFh~TS!A}5R0T#Xh!4H&8?r1Z#vq^4mH+Q)XfLT5r04XxGVG)xtjKGLF;t&CK"
    "2qr|=D}Z-V6h_bTHRv{6g>(M(4WoVDyk0)N@$>!|p6Q7+XUmF)t8jB-K`aTU%ly5m-<`Ily$O%Ft!LwZ@%(y)#<hTtly};r*6VA0"
    "VsEkUOLV)y>+oXUD)-Z@g1q$|qI{1ndD%C?ea7=LZKyu1z5UZxGjlVjJc&Ff`2ujEAVB"
)
WARM_MODEL: Final = zlib.decompress(base64.b85decode(_PACKED))
