"""Runs several HTTP processes behind one port (VIM_HTTP_WORKERS); they share the device processes of their parent."""
