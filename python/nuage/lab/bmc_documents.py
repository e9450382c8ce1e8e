"""The Redfish resources of a node's emulated BMC: system, chassis, power, thermal, sensors.

`ComputerSystem`, `Chassis`, `EnvironmentMetrics`, `Sensor` and the older `Power` and
`Thermal`, as servers of the last ten years have them. Every number is read from the rig at
the moment of the request.
"""

from collections.abc import Mapping
from typing import Final

from nuage.lab.machine import Machine, State
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
from nuage.lab.rig import Rig
from nuage.units import JOULES_PER_KWH

RESET_TYPES: Final = (
    "On", "ForceOff", "GracefulShutdown", "GracefulRestart", "ForceRestart", "PowerCycle",
    "ForceOn",
)  # fmt: skip
BOOT_TARGETS: Final = ("None", "Pxe", "Hdd", "Cd", "UefiHttp", "BiosSetup")
BOOT_ENABLED: Final = ("Disabled", "Once", "Continuous")
BOOT_MODES: Final = ("UEFI", "Legacy")
_PROGRESS: Final = {
    State.DARK: "None", State.OFF: "None", State.POST: "PrimaryProcessorInitializationStarted",
    State.ON: "OSRunning", State.STOPPING: "OSRunning",
}  # fmt: skip


class BootOverride:
    """What the BMC was told to boot from next."""

    def __init__(self) -> None:
        self.target = "None"
        self.enabled = "Disabled"
        self.mode = "UEFI"
        self.boots_seen = 0


def install_bmc(service: RedfishService, rig: Rig, node: str) -> None:
    """Serve a node's hardware on `service`."""
    boot = BootOverride()
    service.root_links["Systems"] = link("/Systems")
    service.add_collection("/Systems", "ComputerSystem", lambda: ["1"])
    service.add(
        "/Systems/1",
        "ComputerSystem.v1_23_1.ComputerSystem",
        lambda: _system(service, rig, node, boot),
    )
    service.add_action(
        "/Systems/1/Actions/ComputerSystem.Reset", lambda body: _reset(rig, node, body)
    )

    def set_target(value: Json) -> None:
        boot.target = text(value, "BootSourceOverrideTarget", BOOT_TARGETS)
        boot.boots_seen = rig.machine(node).boots

    def set_enabled(value: Json) -> None:
        boot.enabled = text(value, "BootSourceOverrideEnabled", BOOT_ENABLED)
        boot.boots_seen = rig.machine(node).boots

    def set_mode(value: Json) -> None:
        boot.mode = text(value, "BootSourceOverrideMode", BOOT_MODES)

    service.write(
        "/Systems/1",
        {
            "Boot.BootSourceOverrideTarget": set_target,
            "Boot.BootSourceOverrideEnabled": set_enabled,
            "Boot.BootSourceOverrideMode": set_mode,
        },
    )
    _install_chassis(service, rig, node)


def _system(service: RedfishService, rig: Rig, node: str, boot: BootOverride) -> Document:
    machine, hardware = rig.machine(node), rig.nodes[node].hardware
    if boot.enabled == "Once" and machine.boots > boot.boots_seen:
        boot.enabled, boot.target = "Disabled", "None"  # used up by the boot since
    return {
        "SystemType": "Physical",
        "HostName": node,
        "Manufacturer": "Nuage",
        "Model": "Lab node",
        "SerialNumber": f"LAB-{node}",
        "UUID": service.uuid,
        "PowerState": _power_state(machine),
        "BootProgress": {"LastState": _PROGRESS[machine.state]},
        "PowerRestorePolicy": "LastState",
        "ProcessorSummary": {"Count": 1, "LogicalProcessorCount": hardware.cpu_count},
        "MemorySummary": {"TotalSystemMemoryGiB": hardware.memory_mib / 1024},
        "Status": healthy("Enabled" if machine.is_powered else "Disabled"),
        "Boot": {
            "BootSourceOverrideTarget": boot.target,
            "BootSourceOverrideTarget@Redfish.AllowableValues": list(BOOT_TARGETS),
            "BootSourceOverrideEnabled": boot.enabled,
            "BootSourceOverrideMode": boot.mode,
        },
        "Links": {"Chassis": [link("/Chassis/1")], "ManagedBy": [link("/Managers/1")]},
        "Actions": {
            "#ComputerSystem.Reset": {
                "target": f"{ROOT}/Systems/1/Actions/ComputerSystem.Reset",
                "ResetType@Redfish.AllowableValues": list(RESET_TYPES),
            }
        },
    }


def _power_state(machine: Machine) -> str:
    if machine.state is State.STOPPING:
        return "PoweringOff"
    return "On" if machine.is_powered else "Off"


def _reset(rig: Rig, node: str, body: Mapping[str, Json]) -> None:
    order = text(body.get("ResetType", "On"), "ResetType", RESET_TYPES)
    machine, now_s = rig.machine(node), rig.clock.monotonic_s()
    if not machine.is_powered and order not in ("On", "ForceOn", "ForceOff"):
        raise RedfishError(
            409, "Base.1.18.OperationNotAllowed", f"{order} of a machine that is off"
        )
    match order:
        case "On" | "ForceOn":
            rig.act(node, machine.power_on(now_s))
        case "ForceOff":
            rig.act(node, machine.force_off(now_s))
        case "GracefulShutdown":
            rig.act(node, machine.shut_down(now_s))
        case "GracefulRestart":
            rig.act(node, machine.shut_down(now_s, then_restart=True))
        case _:
            rig.act(node, machine.force_restart(now_s))


def _install_chassis(service: RedfishService, rig: Rig, node: str) -> None:
    site = rig.nodes[node].site
    service.add_collection("/Chassis", "Chassis", lambda: ["1"])
    service.add(
        "/Chassis/1",
        "Chassis.v1_26_0.Chassis",
        lambda: {
            "ChassisType": "RackMount",
            "Manufacturer": "Nuage",
            "Model": "Lab node",
            "SerialNumber": f"LAB-{node}",
            "PowerState": _power_state(rig.machine(node)),
            "Status": healthy(),
            "MaxPowerWatts": rig.nodes[node].hardware.peak_watts,
            "MinPowerWatts": rig.nodes[node].hardware.standby_watts,
            "Location": {"Placement": {"Row": site, "Rack": rig.nodes[node].rack}},
            "EnvironmentMetrics": link("/Chassis/1/EnvironmentMetrics"),
            "Sensors": link("/Chassis/1/Sensors"),
            "Power": link("/Chassis/1/Power"),
            "Thermal": link("/Chassis/1/Thermal"),
            "Links": {
                "ComputerSystems": [link("/Systems/1")], "ManagedBy": [link("/Managers/1")],
            },
        },
    )  # fmt: skip
    sensors = f"{ROOT}/Chassis/1/Sensors"
    service.add(
        "/Chassis/1/EnvironmentMetrics",
        "EnvironmentMetrics.v1_4_0.EnvironmentMetrics",
        lambda: {
            "PowerWatts": {
                "DataSourceUri": f"{sensors}/Power", "Reading": round(rig.node_watts(node), 2),
            },
            "EnergykWh": {"DataSourceUri": f"{sensors}/Energy", "Reading": _kwh(rig, node)},
            "TemperatureCelsius": {
                "DataSourceUri": f"{sensors}/Inlet", "Reading": round(rig.supply_celsius(site), 1),
            },
        },
    )  # fmt: skip
    _install_sensors(service, rig, node)
    _install_older(service, rig, node)


def _kwh(rig: Rig, node: str) -> float:
    """Return the boards' energy: the outlet's without the supply's loss."""
    machine = rig.machine(node)
    return round(machine.energy_joules * machine.hardware.psu_efficiency / JOULES_PER_KWH, 6)


def _install_sensors(service: RedfishService, rig: Rig, node: str) -> None:
    site = rig.nodes[node].site
    service.add_collection("/Chassis/1/Sensors", "Sensor", lambda: ["Power", "Energy", "Inlet"])

    def power() -> Document:
        watts = round(rig.node_watts(node), 2)
        peak, when_s = rig.note_peak(node, watts)
        return {
            **reading(service, watts, "Power", "W"),
            "PeakReading": peak,
            "PeakReadingTime": timestamp(when_s),
        }

    kind = "Sensor.v1_9_1.Sensor"
    service.add("/Chassis/1/Sensors/Power", kind, power)
    service.add(
        "/Chassis/1/Sensors/Energy",
        kind,
        lambda: reading(service, _kwh(rig, node), "EnergykWh", "kW.h"),
    )
    service.add(
        "/Chassis/1/Sensors/Inlet",
        kind,
        lambda: reading(service, round(rig.supply_celsius(site), 1), "Temperature", "Cel"),
    )


def reading(service: RedfishService, value: float, kind: str, units: str) -> Document:
    """Return the body of a Sensor that was read just now."""
    electrical: Document = {} if kind == "Temperature" else {"ElectricalContext": "Total"}
    return {
        "Reading": value,
        "ReadingType": kind,
        "ReadingUnits": units,
        "ReadingTime": timestamp(service.now_s()),
        "SensingInterval": "PT1S",
        "RelatedItem": [link("/Chassis/1")],
        "Status": healthy(),
        **electrical,
    }


def _install_older(service: RedfishService, rig: Rig, node: str) -> None:
    """Serve the resources that clients of older servers read."""
    site = rig.nodes[node].site
    service.add(
        "/Chassis/1/Power",
        "Power.v1_7_3.Power",
        lambda: {
            "PowerControl": [
                {
                    "@odata.id": f"{ROOT}/Chassis/1/Power#/PowerControl/0",
                    "MemberId": "0",
                    "Name": "System Power Control",
                    "PowerConsumedWatts": round(rig.node_watts(node), 2),
                    "PowerCapacityWatts": rig.nodes[node].hardware.peak_watts,
                }
            ],
        },
    )
    service.add(
        "/Chassis/1/Thermal",
        "Thermal.v1_7_3.Thermal",
        lambda: {
            "Temperatures": [
                {
                    "@odata.id": f"{ROOT}/Chassis/1/Thermal#/Temperatures/0",
                    "MemberId": "0",
                    "Name": "Inlet",
                    "ReadingCelsius": round(rig.supply_celsius(site), 1),
                    "PhysicalContext": "Intake",
                    "Status": healthy(),
                }
            ],
            "Fans": [],
        },
    )
