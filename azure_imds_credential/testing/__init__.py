"""Aids for tests without Azure: an IMDS emulator, safe recordings, pytest fixtures. Never imported by the package."""
