"""Run another sample on a recorded session, without IMDS and vault.  Usage: replay.py RECORDING SAMPLE [ARGUMENTS]."""

import runpy
import sys

from azure_imds_credential.testing import ReplayError, imds_vcr

if __name__ == "__main__":
    recording, sample, *sys.argv[1:] = sys.argv[1:]
    try:
        with imds_vcr(recording):
            runpy.run_path(sample, run_name="__main__")
    except (ReplayError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
