"""Azure managed identity tokens from the Instance Metadata Service (IMDS)."""
