"""The contracts between engine and plugins, one module a kind. Plugin authors import harness.api."""
