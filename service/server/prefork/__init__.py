"""Several HTTP processes behind one port (VIM_HTTP_WORKERS), which share the device processes of their parent."""
