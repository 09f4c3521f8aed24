"""What the makers say of their devices: memory, speed and connections, for plans and for model FLOP utilisation.

Figures are those of the data sheets, without sparsity. Nothing reaches a peak: a plan states the share that it assumes.
"""

from __future__ import annotations

from dataclasses import dataclass

from bimo.core.errors import UserError, nearest

_T, _G = 1e12, 1e9


@dataclass(frozen=True, slots=True)
class DeviceSheet:
    """One device.

    Attributes:
        title: What its maker calls it.
        memory: Bytes on the device.
        bf16_flops: Dense matrix products in bfloat16, operations per second.
        bandwidth: Memory, bytes per second.
        link: To its neighbours in the same machine, bytes per second and direction.
        network: To other machines, bytes per second, direction and device, as such machines are usually built.
        per_node: Devices in such a machine.
    """

    title: str
    memory: float
    bf16_flops: float
    bandwidth: float
    link: float
    network: float = 50 * _G
    per_node: int = 8


SHEETS: dict[str, DeviceSheet] = {
    "h100": DeviceSheet("NVIDIA H100 SXM 80 GB", 80 * _G, 989.4 * _T, 3.35 * _T, 450 * _G),
    "h100-pcie": DeviceSheet("NVIDIA H100 PCIe 80 GB", 80 * _G, 756.5 * _T, 2.0 * _T, 64 * _G),
    "h200": DeviceSheet("NVIDIA H200 SXM 141 GB", 141 * _G, 989.4 * _T, 4.8 * _T, 450 * _G),
    "b200": DeviceSheet("NVIDIA B200 SXM", 180 * _G, 2250 * _T, 8.0 * _T, 900 * _G),
    "a100-80gb": DeviceSheet("NVIDIA A100 SXM 80 GB", 80 * _G, 312 * _T, 2.039 * _T, 300 * _G, 25 * _G),
    "a100-40gb": DeviceSheet("NVIDIA A100 SXM 40 GB", 40 * _G, 312 * _T, 1.555 * _T, 300 * _G, 25 * _G),
    "l40s": DeviceSheet("NVIDIA L40S", 48 * _G, 362 * _T, 0.864 * _T, 32 * _G, 25 * _G),
    "l4": DeviceSheet("NVIDIA L4", 24 * _G, 121 * _T, 0.3 * _T, 32 * _G, 12.5 * _G),
    "a10g": DeviceSheet("NVIDIA A10G", 24 * _G, 70 * _T, 0.6 * _T, 32 * _G, 12.5 * _G),
    "rtx4090": DeviceSheet("NVIDIA GeForce RTX 4090", 24 * _G, 165 * _T, 1.008 * _T, 32 * _G, 1.25 * _G),
    "rtx3090": DeviceSheet("NVIDIA GeForce RTX 3090", 24 * _G, 71 * _T, 0.936 * _T, 32 * _G, 1.25 * _G),
}
"""By the names that people type."""

_MARKS = (
    # (words that must all be in the name that the driver gives, the sheet); the first that fits.
    (("H100", "PCIE"), "h100-pcie"),
    (("H100",), "h100"),
    (("H200",), "h200"),
    (("B200",), "b200"),
    (("A100", "40GB"), "a100-40gb"),
    (("A100",), "a100-80gb"),
    (("L40S",), "l40s"),
    (("L4",), "l4"),
    (("A10G",), "a10g"),
    (("4090",), "rtx4090"),
    (("3090",), "rtx3090"),
)


def sheet(name: str) -> DeviceSheet:
    """The data sheet of a device by the name that a person types.

    Raises:
        UserError: There is none; the nearest name is said.
    """
    key = name.lower().replace("_", "-")
    if key not in SHEETS:
        known = ", ".join(SHEETS)
        raise UserError(f"no data sheet of {name!r}{nearest(key, SHEETS)}", where="device", mend=f"Known: {known}.")
    return SHEETS[key]


def sheet_of(driver_name: str) -> DeviceSheet | None:
    """The data sheet of a device by the name that its driver gives, `NVIDIA H100 80GB HBM3`; None: unknown.

    Short marks are compared with whole words: an L4 is no L40S.
    """
    upper = driver_name.upper()
    words = upper.replace("-", " ").split()
    for marks, key in _MARKS:
        if all(mark in words if len(mark) <= 3 else mark in upper for mark in marks):
            return SHEETS[key]
    return None


def peak_flops(driver_name: str) -> float:
    """Dense bf16 operations per second of a device by the name that its driver gives; 0: unknown."""
    found = sheet_of(driver_name)
    return found.bf16_flops if found else 0.0
