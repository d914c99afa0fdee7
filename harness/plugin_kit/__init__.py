"""What a plugin's author needs besides harness.api: new packages, and the reference of hooks, names and commands."""
