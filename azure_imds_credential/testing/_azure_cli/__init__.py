"""The developer's own `az login` in the form of IMDS."""
