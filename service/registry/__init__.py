"""Which models the server has, in which versions, and where their files are."""
