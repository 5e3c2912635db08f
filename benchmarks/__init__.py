"""What this library costs and saves, beside azure-identity and bare msal: `python -m benchmarks`."""
