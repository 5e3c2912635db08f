"""Tokens shared by the processes of one user on one machine (`shared_cache=True`)."""
