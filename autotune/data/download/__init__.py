"""Download, verify and unpack published archives."""
