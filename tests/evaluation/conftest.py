"""The small artifact of the classifier's tests, for what is measured on one."""

from tests.classifier.conftest import artifact, encoder, forget

__all__ = ["artifact", "encoder", "forget"]
