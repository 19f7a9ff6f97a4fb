"""The sentence encoder: text to a unit vector, by ONNX Runtime.

It knows no policy, no forget set and no window. Begin with `encoder.py`; `export.py` prepares the ONNX file that it
runs, and is the only module here that needs torch.
"""
