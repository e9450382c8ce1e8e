"""What every Redfish service of the lab has in common: tree, sessions, accounts, manager.

A service is a table from path to a function that renders the resource now; nothing is
computed before somebody asks. Resources and properties follow DMTF's DSP0266 (protocol) and
DSP2046 (schemas) and what the OCP service baseline asks of any service. Pure: HTTP is in
`redfish_server`.
"""

import hmac
import uuid
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeAlias

from nuage.ids import EntropySource

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Document: TypeAlias = dict[str, Json]
Render: TypeAlias = Callable[[], Document]
Action: TypeAlias = Callable[[Mapping[str, Json]], None]

ROOT: Final = "/redfish/v1"
SESSION_TIMEOUT_S: Final = 1800
SESSIONS_MAX: Final = 64  # a real BMC has about 16; each controller keeps one
LOG_ENTRIES_MAX: Final = 100
_NAMESPACE: Final = uuid.UUID("9d1d0c4e-3f0e-5c0a-9a53-6e7561676521")


class RedfishError(Exception):
    """The request cannot be served; `status` is HTTP's, `message_id` Redfish's."""

    def __init__(self, status: int, message_id: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message_id = message_id
        self.message = message

    def body(self) -> Document:
        """Return the error document of DSP0266 §8.6."""
        info: Document = {
            "@odata.type": "#Message.v1_1_2.Message",
            "MessageId": self.message_id,
            "Message": self.message,
            "Severity": "Warning",
        }
        return {
            "error": {
                "code": self.message_id,
                "message": self.message,
                "@Message.ExtendedInfo": [info],
            }
        }


@dataclass(slots=True)
class LogEntry:
    """One line of a manager's log."""

    created_s: float
    message_id: str
    message: str


@dataclass(slots=True)
class Session:
    """A login; `used_s` is monotonic."""

    session_id: str
    token: str
    user: str
    used_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a service says it is."""

    name: str
    address: str
    port: int
    mac: str
    product: str
    certificate_pem: str = ""
    started_s: float = 0.0


@dataclass(slots=True)
class Accounts:
    """The one account of a BMC and its sessions."""

    user: str
    password: str
    entropy: EntropySource
    sessions: dict[str, Session] = field(default_factory=dict)

    def basic(self, header: str) -> bool:
        """Tell whether an `Authorization: Basic` header is right."""
        scheme, _, encoded = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            user, _, password = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            return False
        return self.matches(user, password)

    def matches(self, user: str, password: str) -> bool:
        """Compare in constant time."""
        same_user = hmac.compare_digest(user.encode(), self.user.encode())
        return hmac.compare_digest(password.encode(), self.password.encode()) and same_user

    def open(self, now_s: float) -> Session:
        """Open a session; the longest unused goes when there are too many."""
        self.expire(now_s)
        while len(self.sessions) >= SESSIONS_MAX:
            oldest = min(self.sessions.values(), key=lambda each: each.used_s)
            del self.sessions[oldest.session_id]
        session = Session(self.entropy(4).hex(), self.entropy(16).hex(), self.user, now_s)
        self.sessions[session.session_id] = session
        return session

    def by_token(self, token: str, now_s: float) -> Session | None:
        """Return the session of a token and mark it used."""
        self.expire(now_s)
        for session in self.sessions.values():
            if hmac.compare_digest(session.token.encode(), token.encode()):
                session.used_s = now_s
                return session
        return None

    def expire(self, now_s: float) -> None:
        """Forget sessions unused for longer than the service allows."""
        for session in list(self.sessions.values()):
            if now_s - session.used_s > SESSION_TIMEOUT_S:
                del self.sessions[session.session_id]


class RedfishService:
    """One Redfish service: resources by path, actions by path, writable properties by path."""

    def __init__(self, identity: Identity, accounts: Accounts, now_s: Callable[[], float]) -> None:
        self.identity = identity
        self.accounts = accounts
        self.now_s = now_s
        self.log: list[LogEntry] = []
        self.resources: dict[str, Render] = {}
        self.families: dict[str, Callable[[str], Document | None]] = {}
        self.actions: dict[str, Action] = {}
        self.writable: dict[str, Mapping[str, Callable[[Json], None]]] = {}
        self.uuid = str(uuid.uuid5(_NAMESPACE, identity.name))
        self.root_links: Document = {}
        self._note("ResourceEvent.1.3.ResourceCreated", "the management controller started")
        _install(self)

    def add(self, path: str, odata_type: str, body: Callable[[], Document]) -> None:
        """Serve `body` at `path` (below the root) with its `@odata` annotations."""
        where = ROOT + path
        last = where.rpartition("/")[2]

        def render() -> Document:
            writable = sorted(self.writable.get(where, ()))
            annotations: Document = {"@Redfish.WriteableProperties": writable} if writable else {}
            return {
                "@odata.id": where,
                "@odata.type": "#" + odata_type,
                "Id": last,
                "Name": last,
                "Description": f"{last} of {self.identity.name}",
                **body(),
                **annotations,
            }

        self.resources[where] = render

    def add_collection(self, path: str, kind: str, members: Callable[[], Sequence[str]]) -> None:
        """Serve a collection whose members are sub-paths of it."""

        def body() -> Document:
            links = [link(f"{path}/{member}") for member in members()]
            return {"Members": links, "Members@odata.count": len(links)}

        where = ROOT + path
        title = f"{kind} Collection"
        self.resources[where] = lambda: {
            "@odata.id": where,
            "@odata.type": f"#{kind}Collection.{kind}Collection",
            "Name": title,
            "Description": f"{title} of {self.identity.name}",
            **body(),
        }

    def add_action(self, path: str, act: Action) -> None:
        """Serve `POST path`."""
        self.actions[ROOT + path] = act

    def write(self, path: str, setters: Mapping[str, Callable[[Json], None]]) -> None:
        """Let PATCH change properties (dotted below the resource) of the resource at `path`."""
        self.writable[ROOT + path] = setters

    def get(self, path: str) -> Document:
        """Return the resource at `path`, or raise RedfishError 404."""
        where = path.rstrip("/")
        render = self.resources.get(where)
        if render is not None:
            return render()
        parent, _, member = where.rpartition("/")
        family = self.families.get(parent)
        document = family(member) if family else None
        if document is None:
            raise RedfishError(404, "Base.1.18.ResourceMissingAtURI", f"no resource at {path}")
        return document

    def patch(self, path: str, body: Mapping[str, Json]) -> Document:
        """Change what the body names; refuse all of it when any part cannot be written."""
        where = path.rstrip("/")
        self.get(where)
        setters = self.writable.get(where, {})
        changes = flatten(body)
        for name in changes:
            if name not in setters:
                raise RedfishError(
                    400, "Base.1.18.PropertyNotWritable", f"{name} of {path} cannot be written"
                )
        for name, value in changes.items():
            setters[name](value)
        return self.get(where)

    def post(self, path: str, body: Mapping[str, Json]) -> None:
        """Run the action at `path`."""
        act = self.actions.get(path.rstrip("/"))
        if act is None:
            if path.rstrip("/") in self.resources:
                raise RedfishError(405, "Base.1.18.OperationNotAllowed", f"POST at {path}")
            raise RedfishError(404, "Base.1.18.ActionNotSupported", f"no action at {path}")
        act(body)
        self._note("Base.1.18.Success", f"action {path.rpartition('/')[2]} {dict(body)}")

    def _note(self, message_id: str, message: str) -> None:
        self.log.append(LogEntry(self.now_s(), message_id, message))
        del self.log[:-LOG_ENTRIES_MAX]


def link(path: str) -> Document:
    """Return a reference to the resource at `path` below the root."""
    return {"@odata.id": ROOT + path}


def flatten(body: Mapping[str, Json], prefix: str = "") -> dict[str, Json]:
    """Return nested properties under dotted names (``Boot.BootSourceOverrideTarget``)."""
    flat: dict[str, Json] = {}
    for name, value in body.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def timestamp(now_s: float) -> str:
    """Return a moment as Redfish writes it."""
    return datetime.fromtimestamp(now_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def healthy(state: str = "Enabled") -> Document:
    """Return a Status object."""
    return {"State": state, "Health": "OK"}


def text(value: Json, name: str, allowed: Sequence[str] = ()) -> str:
    """Return `value` as text, or raise RedfishError 400 naming the property."""
    if not isinstance(value, str):
        raise RedfishError(
            400, "Base.1.18.PropertyValueTypeError", f"{name} is to be a string, not {value!r}"
        )
    if allowed and value not in allowed:
        raise RedfishError(
            400, "Base.1.18.PropertyValueNotInList",
            f"{name} {value!r} is not one of {', '.join(allowed)}",
        )  # fmt: skip
    return value


def _install(service: RedfishService) -> None:
    """Serve what every service has."""
    me = service.identity
    manager = link("/Managers/1")

    def root() -> Document:
        return {
            "Id": "RootService",
            "Name": f"Redfish service of {me.name}",
            "RedfishVersion": "1.18.0",
            "UUID": service.uuid,
            "Vendor": "Nuage",
            "Product": me.product,
            "ProtocolFeaturesSupported": {
                "ExpandQuery": {
                    "ExpandAll": False, "Levels": False, "Links": False, "NoLinks": True,
                    "MaxLevels": 1,
                },
                "FilterQuery": False,
                "OnlyMemberQuery": True,
                "SelectQuery": False,
                "ExcerptQuery": False,
                "MultipleHTTPRequests": True,
            },
            "Managers": link("/Managers"),
            "Chassis": link("/Chassis"),
            "SessionService": link("/SessionService"),
            "AccountService": link("/AccountService"),
            "CertificateService": link("/CertificateService"),
            "EventService": link("/EventService"),
            "UpdateService": link("/UpdateService"),
            "Links": {
                "Sessions": link("/SessionService/Sessions"), "ManagerProvidingService": manager,
            },
            **service.root_links,
        }  # fmt: skip

    service.add("", "ServiceRoot.v1_17_0.ServiceRoot", root)
    _install_accounts(service)
    _install_manager(service)
    _install_services(service)


def _install_accounts(service: RedfishService) -> None:
    accounts = service.accounts
    service.add(
        "/SessionService",
        "SessionService.v1_1_9.SessionService",
        lambda: {
            "ServiceEnabled": True,
            "SessionTimeout": SESSION_TIMEOUT_S,
            "Status": healthy(),
            "Sessions": link("/SessionService/Sessions"),
        },
    )
    service.add_collection("/SessionService/Sessions", "Session", lambda: list(accounts.sessions))

    def session(member: str) -> Document | None:
        found = accounts.sessions.get(member)
        if found is None:
            return None
        return {
            "@odata.id": f"{ROOT}/SessionService/Sessions/{member}",
            "@odata.type": "#Session.v1_7_2.Session",
            "Id": member,
            "Name": f"Session {member}",
            "UserName": found.user,
        }

    service.families[f"{ROOT}/SessionService/Sessions"] = session
    service.add(
        "/AccountService",
        "AccountService.v1_17_0.AccountService",
        lambda: {
            "ServiceEnabled": True,
            "Status": healthy(),
            "SupportedAccountTypes": ["Redfish"],
            "Accounts": link("/AccountService/Accounts"),
            "Roles": link("/AccountService/Roles"),
        },
    )
    service.add_collection("/AccountService/Accounts", "ManagerAccount", lambda: ["1"])
    service.add(
        "/AccountService/Accounts/1",
        "ManagerAccount.v1_12_1.ManagerAccount",
        lambda: {
            "UserName": accounts.user,
            "Password": None,
            "Enabled": True,
            "Locked": False,
            "AccountTypes": ["Redfish"],
            "RoleId": "Administrator",
            "Links": {"Role": link("/AccountService/Roles/Administrator")},
        },
    )
    service.add_collection("/AccountService/Roles", "Role", lambda: ["Administrator"])
    service.add(
        "/AccountService/Roles/Administrator",
        "Role.v1_3_2.Role",
        lambda: {
            "RoleId": "Administrator",
            "IsPredefined": True,
            "AssignedPrivileges": [
                "Login", "ConfigureManager", "ConfigureUsers", "ConfigureSelf",
                "ConfigureComponents",
            ],
        },
    )  # fmt: skip


def _install_manager(service: RedfishService) -> None:
    me = service.identity

    def manager() -> Document:
        return {
            "ManagerType": "Service" if "PDU" in me.product else "BMC",
            "UUID": service.uuid,
            "ServiceEntryPointUUID": service.uuid,
            "FirmwareVersion": "1.0.0",
            "Manufacturer": "Nuage",
            "Model": me.product,
            "DateTime": timestamp(service.now_s()),
            "DateTimeLocalOffset": "+00:00",
            "LastResetTime": timestamp(me.started_s),
            "PowerState": "On",
            "Status": healthy(),
            "NetworkProtocol": link("/Managers/1/NetworkProtocol"),
            "EthernetInterfaces": link("/Managers/1/EthernetInterfaces"),
            "LogServices": link("/Managers/1/LogServices"),
            "Links": {
                "ManagerForChassis": [link("/Chassis/1")],
                "ManagerInChassis": link("/Chassis/1"),
                **(
                    {"ManagerForServers": [link("/Systems/1")]}
                    if "Systems" in service.root_links
                    else {}
                ),
            },
            "Actions": {
                "#Manager.Reset": {
                    "target": f"{ROOT}/Managers/1/Actions/Manager.Reset",
                    "ResetType@Redfish.AllowableValues": ["ForceRestart"],
                }
            },
        }

    service.add_collection("/Managers", "Manager", lambda: ["1"])
    service.add("/Managers/1", "Manager.v1_19_2.Manager", manager)
    service.add_action(
        "/Managers/1/Actions/Manager.Reset",
        lambda _body: service._note(
            "ResourceEvent.1.3.ResourceChanged", "the management controller restarted"
        ),
    )
    _install_network(service)
    _install_log(service)


def _install_network(service: RedfishService) -> None:
    me = service.identity
    base = "/Managers/1/NetworkProtocol"
    service.add(
        base,
        "ManagerNetworkProtocol.v1_10_1.ManagerNetworkProtocol",
        lambda: {
            "HostName": me.name,
            "FQDN": f"{me.name}.lab",
            "Status": healthy(),
            "HTTP": {"ProtocolEnabled": False, "Port": 80},
            "HTTPS": {
                "ProtocolEnabled": True, "Port": me.port,
                "Certificates": link(f"{base}/HTTPS/Certificates"),
            },
        },
    )  # fmt: skip
    service.add_collection(f"{base}/HTTPS/Certificates", "Certificate", lambda: ["1"])
    service.add(
        f"{base}/HTTPS/Certificates/1",
        "Certificate.v1_8_2.Certificate",
        lambda: {"CertificateString": me.certificate_pem, "CertificateType": "PEM"},
    )
    service.add_collection("/Managers/1/EthernetInterfaces", "EthernetInterface", lambda: ["1"])
    service.add(
        "/Managers/1/EthernetInterfaces/1",
        "EthernetInterface.v1_12_2.EthernetInterface",
        lambda: {
            "MACAddress": me.mac,
            "HostName": me.name,
            "FQDN": f"{me.name}.lab",
            "SpeedMbps": 1000,
            "NameServers": [],
            "InterfaceEnabled": True,
            "LinkStatus": "LinkUp",
            "Status": healthy(),
            "DHCPv4": {"DHCPEnabled": False},
            "DHCPv6": {"OperatingMode": "Disabled"},
            "IPv4Addresses": [
                {
                    "Address": me.address, "SubnetMask": "255.255.255.0",
                    "AddressOrigin": "Static", "Gateway": me.address.rpartition(".")[0] + ".254",
                }
            ],
        },
    )  # fmt: skip


def _install_log(service: RedfishService) -> None:
    base = "/Managers/1/LogServices"
    service.add_collection(base, "LogService", lambda: ["Log"])
    service.add(
        f"{base}/Log",
        "LogService.v1_8_0.LogService",
        lambda: {
            "DateTime": timestamp(service.now_s()),
            "DateTimeLocalOffset": "+00:00",
            "LogEntryType": "Event",
            "MaxNumberOfRecords": LOG_ENTRIES_MAX,
            "OverWritePolicy": "WrapsWhenFull",
            "Entries": link(f"{base}/Log/Entries"),
            "Actions": {
                "#LogService.ClearLog": {"target": f"{ROOT}{base}/Log/Actions/LogService.ClearLog"}
            },
        },
    )
    service.add_action(f"{base}/Log/Actions/LogService.ClearLog", lambda _body: service.log.clear())
    where = f"{ROOT}{base}/Log/Entries"

    def entry(member: str) -> Document | None:
        index = int(member) if member.isdigit() else 0
        if not 1 <= index <= len(service.log):
            return None
        line = service.log[index - 1]
        return {
            "@odata.id": f"{where}/{index}",
            "@odata.type": "#LogEntry.v1_17_0.LogEntry",
            "Id": str(index),
            "Name": f"Entry {index}",
            "Created": timestamp(line.created_s),
            "EntryType": "Event",
            "Severity": "OK",
            "MessageId": line.message_id,
            "Message": line.message,
        }

    def entries() -> Document:
        members: list[Json] = [entry(str(index)) for index in range(1, len(service.log) + 1)]
        return {
            "@odata.id": where,
            "@odata.type": "#LogEntryCollection.LogEntryCollection",
            "Name": "Log Entry Collection",
            "Members": members,
            "Members@odata.count": len(members),
        }

    service.resources[where] = entries
    service.families[where] = entry


def _install_services(service: RedfishService) -> None:
    base = "/CertificateService"
    service.add(
        base,
        "CertificateService.v1_0_6.CertificateService",
        lambda: {
            "CertificateLocations": link(f"{base}/CertificateLocations"),
            "Actions": {
                "#CertificateService.GenerateCSR": {
                    "target": f"{ROOT}{base}/Actions/CertificateService.GenerateCSR",
                    "@Redfish.ActionInfo": f"{ROOT}{base}/GenerateCSRActionInfo",
                },
                "#CertificateService.ReplaceCertificate": {
                    "target": f"{ROOT}{base}/Actions/CertificateService.ReplaceCertificate"
                },
            },
        },
    )
    service.add(
        f"{base}/CertificateLocations",
        "CertificateLocations.v1_0_4.CertificateLocations",
        lambda: {
            "Links": {"Certificates": [link("/Managers/1/NetworkProtocol/HTTPS/Certificates/1")]}
        },
    )
    service.add(
        f"{base}/GenerateCSRActionInfo",
        "ActionInfo.v1_4_2.ActionInfo",
        lambda: {"Parameters": [{"Name": "CommonName", "Required": True, "DataType": "String"}]},
    )
    for action in ("GenerateCSR", "ReplaceCertificate"):
        service.add_action(f"{base}/Actions/CertificateService.{action}", _refuse_certificates)
    service.add(
        "/EventService",
        "EventService.v1_10_3.EventService",
        lambda: {
            "ServiceEnabled": False,  # no events are sent; `docs/design/lab.md` says so
            "Status": healthy("Disabled"),
            "ExcludeMessageId": False,
            "ExcludeRegistryPrefix": False,
            "IncludeOriginOfConditionSupported": False,
            "SubordinateResourcesSupported": False,
            "RegistryPrefixes": [],
            "ResourceTypes": [],
            "Subscriptions": link("/EventService/Subscriptions"),
        },
    )
    service.add_collection("/EventService/Subscriptions", "EventDestination", list)
    service.add(
        "/UpdateService",
        "UpdateService.v1_14_1.UpdateService",
        lambda: {
            "ServiceEnabled": True,
            "Status": healthy(),
            "FirmwareInventory": link("/UpdateService/FirmwareInventory"),
        },
    )
    service.add_collection("/UpdateService/FirmwareInventory", "SoftwareInventory", lambda: ["1"])
    service.add(
        "/UpdateService/FirmwareInventory/1",
        "SoftwareInventory.v1_11_0.SoftwareInventory",
        lambda: {
            "Manufacturer": "Nuage",
            "Updateable": False,
            "Version": "1.0.0",
            "RelatedItem": [link("/Managers/1")],
        },
    )


def _refuse_certificates(_body: Mapping[str, Json]) -> None:
    raise RedfishError(
        501, "Base.1.18.ActionNotSupported",
        "an emulated BMC keeps the certificate that the lab gave it",
    )  # fmt: skip
