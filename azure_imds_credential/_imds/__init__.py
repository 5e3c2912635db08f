"""One request to IMDS: msal builds it, an azure-core pipeline sends it, and the response is judged here."""
