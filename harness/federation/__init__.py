"""Federated training in one process: clients, rounds, the server."""
