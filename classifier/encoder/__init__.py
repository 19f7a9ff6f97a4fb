"""The sentence encoder: text to a unit vector, by ONNX Runtime.

It knows no policy, no forget set and no window. Begin with `encoder.py`; `export.py` prepares the ONNX file that it
runs, and is the only module here that needs torch.
"""

import os

# From version 1.31 on ONNX Runtime sends usage data to its vendor, and reads this variable when it is imported (its
# Privacy.md). Nothing that this package runs may leave the machine, so a value that was set before doesn't count.
# Set here because every module that imports ONNX Runtime is in this folder (tests/test_structure.py).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
