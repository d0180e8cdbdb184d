"""Device keys in a file, a TPM or a token, and provisioning."""
