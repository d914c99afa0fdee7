"""The one place the versions are written."""

__version__ = "0.1.0"
API_VERSION = "1.0"  # of harness.api: a minor version adds or deprecates names, a major one removes some
