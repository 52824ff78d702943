"""The HTTP server process: uvicorn, signals, graceful shutdown, and several HTTP processes behind one port."""
