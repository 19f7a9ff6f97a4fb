"""What each claim of speed costs, measured: run a module to print its figures."""
