"""Pictures: bird's-eye views, overlays and reports."""
