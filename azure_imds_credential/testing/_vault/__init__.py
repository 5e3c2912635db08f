"""A Key Vault on loopback, reached under its real-looking name."""
