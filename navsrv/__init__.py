"""Real-time navigation and guidance server for image-guided sacral, pelvic and spinal procedures."""
