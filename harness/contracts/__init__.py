"""The contracts between engine and plugins, one module per kind. Plugin authors import harness.api."""
