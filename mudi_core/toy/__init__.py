"""The drawn world: photos for the demo, scenes for tests and for the embedded models."""
