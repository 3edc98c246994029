"""From a recorded run directory to verdict, page, exports and bundles."""
