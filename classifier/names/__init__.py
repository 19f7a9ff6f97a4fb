"""The names by which an artifact's subjects are known, and how they decide. Knows no policy."""
