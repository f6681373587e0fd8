"""The gallery on the network: HTTP, page and command line."""
