"""The emulated machine: its identities, tokens, endpoints, rate limits and journal."""
