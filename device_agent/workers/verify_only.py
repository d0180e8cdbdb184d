"""Keep libraries that sign or connect out of a process that only verifies; import it before tuf.

tuf loads the libraries of tokens and key services wherever they are installed, and an HTTP client with OpenSSL. That
takes longer than all else that a verifier loads, and none of it works in the verifier's jail.
"""

import sys
from types import ModuleType
from typing import Final

SIGNING_LIBRARIES: Final = ("hvac", "pkcs11")
HTTP_CLIENT: Final = "tuf.ngclient.urllib3_fetcher"

for _name in SIGNING_LIBRARIES:
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # an import of it fails as if it were not installed

# `tuf.ngclient` names the class; its `Updater` creates one only if it gets no fetcher
_http_client = ModuleType(HTTP_CLIENT)
_http_client.Urllib3Fetcher = type("Urllib3Fetcher", (), {})  # type: ignore[attr-defined]
sys.modules.setdefault(HTTP_CLIENT, _http_client)
