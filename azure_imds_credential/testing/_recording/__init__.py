"""Recorded HTTP sessions: scrubbing, replay and the scan for live secrets."""
