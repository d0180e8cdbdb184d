"""Keep libraries that sign out of a process that only verifies. Import this module before tuf.

tuf loads the libraries of tokens and key services wherever they are installed, which takes longer than all else
that a verifier loads.
"""

import sys
from typing import Final

SIGNING_LIBRARIES: Final = ("hvac", "pkcs11")

for _name in SIGNING_LIBRARIES:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # an import of it fails as if it were not installed
