"""What a plugin's author needs beside harness.api: new packages, and the reference of hooks, names and commands."""
