"""Asking every method about test patients, and comparing what they say."""
