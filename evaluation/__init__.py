"""The demo, its models and its measurements; the product never imports this."""
