"""Runs the HTTP server: uvicorn, signals, graceful shutdown, and several HTTP processes behind one port."""
