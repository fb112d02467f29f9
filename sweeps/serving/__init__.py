"""How pages are served: requests, answers, addresses, and a server that silent or hostile clients do not hold up."""
