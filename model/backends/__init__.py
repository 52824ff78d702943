"""Implementations of the selective scan and of the whole encoder; `VIM_SCAN` selects one."""
