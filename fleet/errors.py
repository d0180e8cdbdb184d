"""Errors of the collector."""

from bundle.errors import Invalid, Refused, Unavailable


class LineRefused(Refused):
    """A line is not a report or vital that the collector accepts. Look at the reason of the line."""

    reason = "line-refused"


class LineSchemaUnknown(LineRefused):
    """A line is of no schema that the collector reads. Send reports and vitals only."""

    reason = "line-schema-unknown"


class SenderUnregistered(LineRefused):
    """The device of a line is not in the registry. Enroll the device, or find out who sent the line."""

    reason = "sender-unregistered"


class SenderRevoked(LineRefused):
    """The device of a line is revoked. Remove `reports.url` on the device."""

    reason = "sender-revoked"


class LineSignatureInvalid(LineRefused):
    """The signature of a line is not valid under the device's key. Find out where the line comes from."""

    reason = "line-signature-invalid"


class LineOfAnotherRepository(LineRefused):
    """A line names another repository. Send it to the collector of that repository."""

    reason = "line-of-another-repository"


class LineForked(LineRefused):
    """A device signed two lines with one number: its disk was restored or copied. Check the device."""

    reason = "line-forked"


class LogLimitReached(LineRefused):
    """A device began too many logs. Check why it loses its journal."""

    reason = "log-limit-reached"


class SenderTooFast(Unavailable):
    """A device sends more lines than its share. Wait, then send the rest."""

    reason = "sender-too-fast"


class BodyTooSlow(Unavailable):
    """The lines of a request came too slowly. Send fewer lines at once."""

    reason = "body-too-slow"


class CollectorBusy(Unavailable):
    """The collector receives as many lines as its memory allows. Wait, then send them again."""

    reason = "collector-busy"


class RegistryUnsigned(Refused):
    """The registry differs from the digest in the fleet document. Restore it, or publish the change."""

    reason = "registry-unsigned"


class FleetStoreInvalid(Invalid):
    """The store belongs to another repository, has another schema, or is no store. Correct `--store`."""

    reason = "fleet-store-invalid"


class FleetStoreUnavailable(Unavailable):
    """The store cannot be opened, read or written. Check its server, its disk and its permissions."""

    reason = "fleet-store-unavailable"


class BrokerUnavailable(Unavailable):
    """The MQTT broker cannot be reached. Check its address, its certificate and `--mqtt`."""

    reason = "broker-unavailable"


class LoginRequired(Invalid):
    """The server would listen on a public address without a login. Add a token or a trusted header."""

    reason = "login-required"
