"""What GPUs can do at most, as their makers say."""

import torch

# 10^12 dense operations a second in bfloat16, or float16 where there is no bfloat16, with sums in
# float32; a longer name stands before those that are a part of it
_PEAKS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "A100": 312.0,
    "A40": 149.7,
    "A30": 165.0,
    "RTX A6000": 154.8,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}


def card_name(device: torch.device) -> str:
    """What a device calls itself; of a CPU: cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak_tflops(name: str) -> float | None:
    """The peak of a card in half precision, in 10^12 operations a second; None: not known here.

    Args:
        name: as of `card_name`.
    """
    words = f" {name.replace('-', ' ')} "
    for known, peak in _PEAKS.items():
        if f" {known} " in words:
            return peak
    return None
