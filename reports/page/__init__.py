"""report.html as a whole."""
