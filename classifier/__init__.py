"""Text in, scores out: how strongly a text asks for something that is to be forgotten.

Primitives: `records.read`, `fit.fit`, `artifact.save` and `load`, `encoder.load_encoder`,
`classifier.Judge`, `classifier.threshold`, `classifier.evidence`. Knows no policy, action or topic.
"""
