"""Fixtures of the classifier's tests that these tests use too: a small artifact, its encoder and its forget rows."""

from tests.classifier.conftest import artifact, encoder, forget, nameless, prefilter_scores

__all__ = ["artifact", "encoder", "forget", "nameless", "prefilter_scores"]
