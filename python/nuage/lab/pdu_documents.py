"""The Redfish resources of a rack's emulated PDU, as the OCP Rack PDU profile asks for them.

One mains circuit, two branches with the rack's outlets shared between them in turn, an
outlet per machine and one for the rack's switch, all with their readings and sensors.
Outlets obey `Outlet.PowerControl`; a machine whose outlet is off is off, and so is its BMC.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

from nuage.lab.bmc_documents import reading
from nuage.lab.redfish_service import (
    ROOT,
    Document,
    Json,
    RedfishError,
    RedfishService,
    healthy,
    link,
    text,
    timestamp,
)
from nuage.lab.rig import Outlet, Rig

VOLTS: Final = 230.0
HERTZ: Final = 50.0
POWER_FACTOR: Final = 0.96
BRANCHES: Final = ("A", "B")
BRANCH_RATED_AMPS: Final = 16.0
OUTLET_RATED_AMPS: Final = 10.0
DELAY_MAX_S: Final = 300.0
PDU: Final = "/PowerEquipment/RackPDUs/1"
_SENSORS: Final = "/Chassis/1/Sensors"


class PduFace:
    """What of the PDU can be written, and where the rig's values are."""

    def __init__(self, service: RedfishService, rig: Rig, name: str) -> None:
        self.service = service
        self.rig = rig
        self.name = name
        description = rig.pdus[name]
        self.rated_amps = description.rated_amps
        self.site = description.site
        self.outlets = rig.outlets[name]
        self.written: dict[str, Json] = {
            "AssetTag": f"LAB-{name}", "UserLabel": name, "LocationIndicatorActive": False,
            "Row": description.site, "Rack": description.rack, "RackOffset": 0,
            "RackOffsetUnits": "EIA_310", "Contacts": [], "SourceName": "container feed A",
            "SourceURI": "", "ContainedBy": "", "Facility": "", "MainsLabel": "mains A",
            "PowerOutlet": "", "ChassisAssetTag": f"LAB-{name}",
        }  # fmt: skip

    def keep(self, key: str) -> Callable[[Json], None]:
        """Return a setter that keeps what was written."""

        def setter(value: Json) -> None:
            self.written[key] = value

        return setter

    def branch_outlets(self, branch: str) -> list[Outlet]:
        """Return the outlets of a branch."""
        return [outlet for outlet in self.outlets if branch_of(outlet) == branch]

    def branch_watts(self, branch: str) -> float:
        """Return the load of a branch."""
        return sum(self.rig.outlet_watts(self.name, each) for each in self.branch_outlets(branch))

    def branch_kwh(self, branch: str) -> float:
        """Return the energy of a branch."""
        return sum(self.rig.outlet_kwh(self.name, each) for each in self.branch_outlets(branch))

    def placement(self) -> Document:
        """Return where the PDU says it is."""
        w = self.written
        return {
            "Placement": {
                "Row": w["Row"], "Rack": w["Rack"], "RackOffset": w["RackOffset"],
                "RackOffsetUnits": w["RackOffsetUnits"],
            },
            "Contacts": w["Contacts"],
        }  # fmt: skip


def outlet_id(outlet: Outlet) -> str:
    """Return the name of an outlet in Redfish: its number as printed on the PDU."""
    return str(outlet.index)


def install_pdu(service: RedfishService, rig: Rig, name: str) -> None:
    """Serve a rack's PDU on `service`."""
    face = PduFace(service, rig, name)
    service.root_links["PowerEquipment"] = link("/PowerEquipment")
    service.add(
        "/PowerEquipment",
        "PowerEquipment.v1_2_2.PowerEquipment",
        lambda: {"Status": healthy(), "RackPDUs": link("/PowerEquipment/RackPDUs")},
    )
    service.add_collection("/PowerEquipment/RackPDUs", "PowerDistribution", lambda: ["1"])
    service.add(PDU, "PowerDistribution.v1_4_1.PowerDistribution", lambda: _distribution(face))
    location = {
        f"Location.Placement.{key}": face.keep(key)
        for key in ("Row", "Rack", "RackOffset", "RackOffsetUnits")
    } | {"Location.Contacts": face.keep("Contacts")}
    locate = {"LocationIndicatorActive": face.keep("LocationIndicatorActive")}
    service.write(
        PDU,
        {
            "AssetTag": face.keep("AssetTag"),
            "UserLabel": face.keep("UserLabel"),
            **location,
            **locate,
        },
    )
    _install_metrics(face)
    _install_mains(face)
    _install_branches(face)
    _install_outlets(face)
    _install_chassis(face, {**location, **locate, "AssetTag": face.keep("ChassisAssetTag")})


def _distribution(face: PduFace) -> Document:
    return {
        "EquipmentType": "RackPDU",
        "AssetTag": face.written["AssetTag"],
        "UserLabel": face.written["UserLabel"],
        "FirmwareVersion": "1.0.0",
        "Version": "1",
        "ProductionDate": "2024-01-01T00:00:00Z",
        "Manufacturer": "Nuage",
        "Model": "Lab rack PDU",
        "PartNumber": "NLP-1",
        "SerialNumber": f"LAB-{face.name}",
        "UUID": face.service.uuid,
        "Status": healthy(),
        "LocationIndicatorActive": face.written["LocationIndicatorActive"],
        "Location": face.placement(),
        "MainsRedundancy": {
            "MaxNumSupported": 1, "MinNumNeeded": 1, "RedundancyType": "NotRedundant",
            "RedundancyGroup": [link(f"{PDU}/Mains/A")], "Status": healthy(),
        },
        "Mains": link(f"{PDU}/Mains"),
        "Branches": link(f"{PDU}/Branches"),
        "Outlets": link(f"{PDU}/Outlets"),
        "Metrics": link(f"{PDU}/Metrics"),
        "Sensors": link(_SENSORS),
        "Links": {"Chassis": [link("/Chassis/1")], "ManagedBy": [link("/Managers/1")]},
    }  # fmt: skip


def power(watts: float, sensor: str) -> Document:
    """Return a power excerpt with its apparent and reactive parts."""
    apparent = watts / POWER_FACTOR
    return {
        "Reading": round(watts, 2),
        "DataSourceUri": f"{ROOT}{_SENSORS}/{sensor}",
        "ApparentVA": round(apparent, 2),
        "ReactiveVAR": round(math.sqrt(max(0.0, apparent**2 - watts**2)), 2),
        "PowerFactor": POWER_FACTOR,
    }


def branch_of(outlet: Outlet) -> str:
    """Return the branch circuit that feeds an outlet."""
    return BRANCHES[(outlet.index - 1) % len(BRANCHES)]


def amps(watts: float) -> float:
    """Return the current of a load on one phase."""
    return round(watts / POWER_FACTOR / VOLTS, 3)


def energy(kwh: float, sensor: str) -> Document:
    """Return an energy excerpt."""
    return {
        "Reading": round(kwh, 6),
        "LifetimeReading": round(kwh, 6),
        "DataSourceUri": f"{ROOT}{_SENSORS}/{sensor}",
        "ApparentkVAh": round(kwh / POWER_FACTOR, 6),
        "ReactivekVARh": round(kwh / POWER_FACTOR * math.sqrt(1 - POWER_FACTOR**2), 6),
    }


def _wiring(rated_amps: float) -> Document:
    return {
        "ElectricalContext": "Total",
        "VoltageType": "AC",
        "NominalVoltage": "AC230V",
        "PhaseWiringType": "OnePhase3Wire",
        "RatedCurrentAmps": rated_amps,
        "Voltage": {"Reading": VOLTS, "DataSourceUri": f"{ROOT}{_SENSORS}/Voltage"},
        "FrequencyHz": {"Reading": HERTZ, "DataSourceUri": f"{ROOT}{_SENSORS}/Frequency"},
        "Status": healthy(),
    }


def _install_metrics(face: PduFace) -> None:
    service, rig, name = face.service, face.rig, face.name
    service.add(
        f"{PDU}/Metrics",
        "PowerDistributionMetrics.v1_3_2.PowerDistributionMetrics",
        lambda: {
            "PowerWatts": power(rig.pdu_watts(name), "Power"),
            "EnergykWh": energy(rig.pdu_kwh(name), "Energy"),
            "PowerLoadPercent": {
                "Reading": round(100 * amps(rig.pdu_watts(name)) / face.rated_amps, 2)
            },
            "TemperatureCelsius": {
                "Reading": round(rig.supply_celsius(face.site), 1),
                "DataSourceUri": f"{ROOT}{_SENSORS}/Inlet",
            },
            "Actions": _reset_action(f"{PDU}/Metrics", "PowerDistributionMetrics"),
        },
    )
    service.add_action(
        f"{PDU}/Metrics/Actions/PowerDistributionMetrics.ResetMetrics",
        lambda _body: rig.peak_watts.pop(name, None) and None,
    )


def _reset_action(path: str, kind: str) -> Document:
    target = f"{ROOT}{path}/Actions/{kind}.ResetMetrics"
    return {f"#{kind}.ResetMetrics": {"target": target}}


def _install_mains(face: PduFace) -> None:
    service, rig, name = face.service, face.rig, face.name
    service.add_collection(f"{PDU}/Mains", "Circuit", lambda: ["A"])

    def mains() -> Document:
        watts = rig.pdu_watts(name)
        return {
            "CircuitType": "Mains",
            **_wiring(face.rated_amps),
            "UserLabel": face.written["MainsLabel"],
            "NominalFrequencyHz": HERTZ,
            "PlugType": "IEC_60309_316P6",
            "BreakerState": "Normal",
            "PowerState": "On",
            "PowerEnabled": True,
            "PowerControlLocked": True,
            "ElectricalSourceName": face.written["SourceName"],
            "ElectricalSourceManagerURI": face.written["SourceURI"] or None,
            "CurrentAmps": {
                "Reading": amps(watts), "DataSourceUri": f"{ROOT}{_SENSORS}/Current",
            },
            "PowerWatts": power(watts, "Power"),
            "EnergykWh": energy(rig.pdu_kwh(name), "Energy"),
            "PowerLoadPercent": {"Reading": round(100 * amps(watts) / face.rated_amps, 2)},
            "UnbalancedCurrentPercent": {"Reading": 0},
            "UnbalancedVoltagePercent": {"Reading": 0},
            "Links": {"DistributionCircuits": [link(f"{PDU}/Branches/{b}") for b in BRANCHES]},
            "Actions": _reset_action(f"{PDU}/Mains/A", "Circuit"),
        }  # fmt: skip

    service.add(f"{PDU}/Mains/A", "Circuit.v1_8_0.Circuit", mains)
    service.add_action(f"{PDU}/Mains/A/Actions/Circuit.ResetMetrics", lambda _body: None)
    service.write(
        f"{PDU}/Mains/A",
        {
            "UserLabel": face.keep("MainsLabel"),
            "ElectricalSourceName": face.keep("SourceName"),
            "ElectricalSourceManagerURI": face.keep("SourceURI"),
        },
    )


def _install_branches(face: PduFace) -> None:
    service = face.service
    service.add_collection(f"{PDU}/Branches", "Circuit", lambda: list(BRANCHES))

    def install(branch: str) -> None:
        path = f"{PDU}/Branches/{branch}"

        def body() -> Document:
            watts = face.branch_watts(branch)
            return {
                "CircuitType": "Branch",
                **_wiring(BRANCH_RATED_AMPS),
                "BreakerState": "Normal",
                "PowerState": "On",
                "PowerEnabled": True,
                "PowerControlLocked": True,
                "PowerRestorePolicy": "AlwaysOn",
                "CurrentAmps": {"Reading": amps(watts)},
                "PowerWatts": power(watts, f"PowerBranch{branch}"),
                "EnergykWh": energy(face.branch_kwh(branch), f"EnergyBranch{branch}"),
                "PowerLoadPercent": {"Reading": round(100 * amps(watts) / BRANCH_RATED_AMPS, 2)},
                "Links": {
                    "Outlets": [
                        link(f"{PDU}/Outlets/{outlet_id(each)}")
                        for each in face.branch_outlets(branch)
                    ],
                    "SourceCircuit": link(f"{PDU}/Mains/A"),
                },
                "Actions": _reset_action(path, "Circuit"),
            }

        service.add(path, "Circuit.v1_8_0.Circuit", body)
        service.add_action(f"{path}/Actions/Circuit.ResetMetrics", lambda _body: None)

    for each in BRANCHES:
        install(each)


def _install_outlets(face: PduFace) -> None:
    service = face.service
    service.add_collection(
        f"{PDU}/Outlets", "Outlet", lambda: [outlet_id(outlet) for outlet in face.outlets]
    )
    for outlet in face.outlets:
        _install_outlet(face, outlet)


def _install_outlet(face: PduFace, outlet: Outlet) -> None:
    service, rig = face.service, face.rig
    path = f"{PDU}/Outlets/{outlet_id(outlet)}"
    service.add(path, "Outlet.v1_4_4.Outlet", lambda: _outlet(face, outlet, path))
    service.add_action(
        f"{path}/Actions/Outlet.PowerControl", lambda body: _switch(rig, face.name, outlet, body)
    )
    service.add_action(
        f"{path}/Actions/Outlet.ResetMetrics", lambda _body: rig.reset_outlet(face.name, outlet)
    )

    def label(value: Json) -> None:
        outlet.label = text(value, "UserLabel")

    def consumer(value: Json) -> None:
        if not isinstance(value, list):
            raise RedfishError(
                400, "Base.1.18.PropertyValueTypeError", "ElectricalConsumerNames is a list"
            )
        outlet.consumer = ", ".join(text(each, "ElectricalConsumerNames") for each in value)

    def locate(value: Json) -> None:
        outlet.locate = value is True

    service.write(
        path,
        {
            "UserLabel": label,
            "ElectricalConsumerNames": consumer,
            "LocationIndicatorActive": locate,
            "PowerOnDelaySeconds": _delay(outlet, "on_delay_s"),
            "PowerOffDelaySeconds": _delay(outlet, "off_delay_s"),
            "PowerCycleDelaySeconds": _delay(outlet, "cycle_delay_s"),
            "PowerRestoreDelaySeconds": _delay(outlet, "restore_delay_s"),
        },
    )


def _delay(outlet: Outlet, attribute: str) -> Callable[[Json], None]:
    def setter(value: Json) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RedfishError(
                400, "Base.1.18.PropertyValueTypeError", f"a delay is seconds, not {value!r}"
            )
        if not 0 <= value <= DELAY_MAX_S:
            raise RedfishError(
                400, "Base.1.18.PropertyValueOutOfRange", f"0 to {DELAY_MAX_S:g} s, not {value}"
            )
        setattr(outlet, attribute, float(value))

    return setter


def _switch(rig: Rig, pdu: str, outlet: Outlet, body: Mapping[str, Json]) -> None:
    order = text(body.get("PowerState"), "PowerState", ("On", "Off", "PowerCycle"))
    rig.switch_outlet(pdu, outlet, order)


def _outlet(face: PduFace, outlet: Outlet, path: str) -> Document:
    watts = face.rig.outlet_watts(face.name, outlet)
    ident = outlet_id(outlet)
    state = "On" if outlet.on else "Off"
    return {
        **_wiring(OUTLET_RATED_AMPS),
        "OutletType": "IEC_60320_C13",
        "UserLabel": outlet.label,
        "ElectricalConsumerNames": [outlet.consumer] if outlet.consumer else [],
        "LocationIndicatorActive": outlet.locate,
        "PowerState": state,
        "PowerStateInTransition": bool(outlet.pending),
        "PowerEnabled": outlet.on,
        "PowerRestorePolicy": "LastState",
        "PowerOnDelaySeconds": outlet.on_delay_s,
        "PowerOffDelaySeconds": outlet.off_delay_s,
        "PowerCycleDelaySeconds": outlet.cycle_delay_s,
        "PowerRestoreDelaySeconds": outlet.restore_delay_s,
        "CurrentAmps": {
            "Reading": amps(watts),
            "DataSourceUri": f"{ROOT}{_SENSORS}/Current{ident}",
        },
        "PowerWatts": power(watts, f"Power{ident}"),
        "EnergykWh": energy(face.rig.outlet_kwh(face.name, outlet), f"Energy{ident}"),
        "Links": {"BranchCircuit": link(f"{PDU}/Branches/{branch_of(outlet)}")},
        "Actions": {
            "#Outlet.PowerControl": {
                "target": f"{ROOT}{path}/Actions/Outlet.PowerControl",
                "PowerState@Redfish.AllowableValues": ["On", "Off", "PowerCycle"],
            },
            **_reset_action(path, "Outlet"),
        },
    }


def _install_chassis(face: PduFace, writable: Mapping[str, Callable[[Json], None]]) -> None:
    service = face.service
    service.add_collection("/Chassis", "Chassis", lambda: ["1"])
    service.add(
        "/Chassis/1",
        "Chassis.v1_26_0.Chassis",
        lambda: {
            "ChassisType": "RackMount",
            "Manufacturer": "Nuage",
            "Model": "Lab rack PDU",
            "PartNumber": "NLP-1",
            "SerialNumber": f"LAB-{face.name}",
            "UUID": service.uuid,
            "Version": "1",
            "HeightMm": 44.45,
            "AssetTag": face.written["ChassisAssetTag"],
            "LocationIndicatorActive": face.written["LocationIndicatorActive"],
            "PowerState": "On",
            "Status": healthy(),
            "Location": face.placement(),
            "Sensors": link(_SENSORS),
            "Links": {"ManagedBy": [link("/Managers/1")], "PowerDistribution": link(PDU)},
        },
    )
    service.write("/Chassis/1", writable)
    _install_sensors(face)


def _install_sensors(face: PduFace) -> None:
    service, rig, name = face.service, face.rig, face.name
    values: dict[str, tuple[str, str, Callable[[], float]]] = {
        "Power": ("Power", "W", lambda: rig.pdu_watts(name)),
        "Energy": ("EnergykWh", "kW.h", lambda: rig.pdu_kwh(name)),
        "Current": ("Current", "A", lambda: amps(rig.pdu_watts(name))),
        "Voltage": ("Voltage", "V", lambda: VOLTS),
        "Frequency": ("Frequency", "Hz", lambda: HERTZ),
        "Inlet": ("Temperature", "Cel", lambda: rig.supply_celsius(face.site)),
        "Outside": ("Temperature", "Cel", lambda: rig.outside_celsius[face.site]),
    }
    for branch in BRANCHES:
        values |= _branch_sensors(face, branch)
    for outlet in face.outlets:
        values |= _outlet_sensors(face, outlet)
    for sensor, (kind, units, read) in values.items():
        _install_sensor(face, sensor, kind, units, read)
    service.add_collection(_SENSORS, "Sensor", lambda: sorted(values))


def _branch_sensors(face: PduFace, branch: str) -> dict[str, tuple[str, str, Callable[[], float]]]:
    return {
        f"PowerBranch{branch}": ("Power", "W", lambda: face.branch_watts(branch)),
        f"EnergyBranch{branch}": ("EnergykWh", "kW.h", lambda: face.branch_kwh(branch)),
    }


def _outlet_sensors(
    face: PduFace, outlet: Outlet
) -> dict[str, tuple[str, str, Callable[[], float]]]:
    rig, name, ident = face.rig, face.name, outlet_id(outlet)
    return {
        f"Power{ident}": ("Power", "W", lambda: rig.outlet_watts(name, outlet)),
        f"Energy{ident}": ("EnergykWh", "kW.h", lambda: rig.outlet_kwh(name, outlet)),
        f"Current{ident}": ("Current", "A", lambda: amps(rig.outlet_watts(name, outlet))),
    }


def _install_sensor(
    face: PduFace, sensor: str, kind: str, units: str, read: Callable[[], float]
) -> None:
    service, rig = face.service, face.rig

    def body() -> Document:
        value = round(read(), 6)
        document = reading(service, value, kind, units)
        if kind != "Power":
            return document
        key = face.name if sensor == "Power" else f"{face.name}/{sensor}"
        peak, when_s = rig.note_peak(key, value)
        apparent = round(value / POWER_FACTOR, 2)
        return {
            **document,
            "ApparentVA": apparent,
            "PeakReading": peak,
            "PeakReadingTime": timestamp(when_s),
        }

    service.add(f"{_SENSORS}/{sensor}", "Sensor.v1_9_1.Sensor", body)
