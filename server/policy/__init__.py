"""Policies: the schema of policy files, tuned values, and the verdict over scores.

All functions are pure except for those that read files; nothing here knows requests or HTTP. Begin with `schema.py`;
`files.py` reads it from YAML.
"""
